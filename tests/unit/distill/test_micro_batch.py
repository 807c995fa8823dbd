"""Gradients accumulated over micro-batches are those of one forward."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from torch import Tensor

from pipeline.plan import PlanSettings, round_anchors, round_slots
from tests.unit.distill.halves import PLAN, SETTINGS, Collection


def a_round(
    collection: Collection, plan: PlanSettings, r: int, micro_batch: int | None
) -> tuple[list[Tensor], dict[str, float], int]:
    """The gradients of all steps one after another, the metrics, and the largest batch seen."""
    gradients: list[Tensor] = []

    def watch(given: Sequence[Tensor]) -> None:
        gradients.extend(g.clone() for g in given)

    # Standing still, so that a step's rounding does not reach the next one's gradients.
    still = replace(SETTINGS.fake_rate, peak=0.0)
    settings = replace(SETTINGS, fake_rate=still, student_rate=still, micro_batch=micro_batch)
    trainer = collection.trainer(plan, settings, watch)
    largest = 0

    def see(module: object, args: object, kwargs: dict[str, Tensor]) -> None:
        nonlocal largest
        largest = max(largest, len(kwargs["hidden_states"]))

    trainer.editor.transformer.register_forward_pre_hook(see, with_kwargs=True)
    return gradients, trainer.update(collection.worker(plan).roll(r, 0, r), r, 0), largest


@pytest.mark.parametrize("ta_fm_batch", [0, 5])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_the_same_gradients_and_metrics(
    mixed: Collection, ta_fm_batch: int, micro_batch: int
) -> None:
    """With anchors of the slots' bucket and of their own, and slots of both streams."""
    plan = mixed.plan(replace(PLAN, batch=4, ta_fm_batch=ta_fm_batch))
    effects = {r: [s.effect is not None for s in round_slots(plan, r)] for r in range(200)}
    two_streams = [r for r, found in effects.items() if 1 <= sum(found) <= 3]

    def apart(r: int) -> bool:
        return ta_fm_batch > 0 and (
            round_anchors(plan, r)[0].bucket != round_slots(plan, r)[0].bucket
        )

    rounds = [next(r for r in two_streams if not apart(r))]
    rounds += [r for r in two_streams if apart(r)][:1]
    assert len(rounds) == (2 if ta_fm_batch else 1)
    for r in rounds:
        whole, metrics, most = a_round(mixed, plan, r, None)
        parts, same, fewer = a_round(mixed, plan, r, micro_batch)
        assert len(whole) == len(parts) > 0
        for gradient, part in zip(whole, parts, strict=True):
            assert (gradient - part).abs().max() <= 1e-5 * gradient.abs().max() + 1e-9
        assert same == pytest.approx(metrics, rel=1e-4, abs=1e-7)
        assert fewer < most
        if micro_batch == 1:
            anchors = -(-max(ta_fm_batch, 1) // 4)
            assert fewer <= 2 + anchors
