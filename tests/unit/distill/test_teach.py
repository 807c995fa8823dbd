"""Teaching an effect whose pairs are of two shapes."""

from collections import Counter

import torch
from torch import Tensor

from pipeline.distill.teach import TEACHER, Pairs, TeachPlan, teach
from pipeline.models.adapters import Adapters
from pipeline.models.editor import Conditions, batch_conditions
from pipeline.models.geometry import TokenShape
from tests.unit.tiny import CHANNELS, MODULES, PROMPT, seeded, tiny_editor

PLAN = TeachPlan(steps=40, batch=2, learning_rate=1e-3, cosine=False, ema=0.0, seed=1)


def pairs(count: int, shape: TokenShape, seed: int) -> Pairs:
    """``count`` random pairs of one picture each."""
    tokens = shape[1] * shape[2]
    conditions = batch_conditions(
        [seeded((3, PROMPT), seed)] * count,
        [seeded((tokens, CHANNELS), seed + i) for i in range(count)],
        [shape, shape],
    )
    return Pairs(conditions, conditions, seeded((count, tokens, CHANNELS), seed))


def test_a_step_is_of_one_bucket_by_its_share_of_the_pairs() -> None:
    editor = tiny_editor()
    adapters = Adapters(editor.transformer)
    adapters.add(TEACHER, 2, 2.0, MODULES, seed=0)
    seen: Counter[TokenShape] = Counter()
    forward = editor.velocity

    def watched(x: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        seen[conditions.shapes[0]] += 1
        return forward(x, t, conditions)

    editor.velocity = watched  # type: ignore[method-assign]
    wide, tall = (1, 1, 2), (1, 3, 1)
    weights = teach(editor, adapters, [pairs(3, wide, 1), pairs(1, tall, 9)], PLAN)
    # Three to one, give or take three standard deviations.
    assert 22 <= seen[wide] <= 38 and seen[wide] + seen[tall] == 40
    assert any(torch.any(value != 0) for key, value in weights.items() if key.endswith("lora_B"))
