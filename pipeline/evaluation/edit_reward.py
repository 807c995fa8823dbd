"""EditReward behind an endpoint: one number for how good an edit is, the higher the better.

The model is a reward head on a vision-language model, run by its authors' package alone. So it is
served by whoever has it: the question is a chat message with the photograph, the output and the
instruction, the answer JSON with the ``reward`` as the model gives it (no bounds; the paper's
table has .93 to 1.05).
"""

import math
from collections.abc import Mapping
from typing import Any

from pipeline.endpoint import Endpoint, Settled, text_part
from pipeline.evaluation.vlm_judge import json_in, shown

# Raise it when the question changes: rewards of the old one are then asked anew.
VERSION = 1
MAX_TOKENS = 100

_QUESTION = """\
Score the edit of the first picture into the second by this instruction: "{prompt}"
Answer with JSON alone: {{"reward": a number}}"""


def read_reward(answer: str) -> float:
    """The reward in an answer. Raises ValueError (the endpoint is told): none in it."""
    value = json_in(answer).get("reward")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError('it has no "reward" that is a number')
    return float(value)


def ask_reward(endpoint: Endpoint, row: Mapping[str, Any]) -> Settled[float]:
    """Ask for one output's reward; ``row`` as in :func:`~.vlm_judge.ask_judgement`."""
    question = text_part(_QUESTION.format(prompt=row["prompt"]))
    messages = [{"role": "user", "content": [*shown(row), question]}]
    return endpoint.settle(messages, read_reward, MAX_TOKENS, int(row["seed"]))
