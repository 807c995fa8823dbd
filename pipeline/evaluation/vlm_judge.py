"""The two-stage vision-language judge: did the effect happen, and is the subject kept (0 to 5)?

BCR, the bad-case rate, is the share of outputs of which the judge says that the effect did not
happen. VSA is 0 for such an output, else its subject-consistency score. Each stage is a question
of its own with its own place in the cache; the second is asked only where the effect happened.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from pipeline.endpoint import Endpoint, Settled, picture_part, text_part
from pipeline.evaluation.effectbench import open_source
from pipeline.images import open_image
from pipeline.miniature.pictures import to_image
from pipeline.mirror import at_hand, local_path
from pipeline.tensor_store import TensorStore

# Raise it when the questions change: judgements of the old ones are then asked anew.
VERSION = 1
MAX_TOKENS = 300
WORST, BEST = 0.0, 5.0

Stage = Literal["happened", "kept"]

_HAPPENED = """\
The first picture is a photograph. The second is what an image editor made of it when asked for the
visual effect "{name}" ("{prompt}").{example}
Did the effect happen in the second picture? It must be clearly visible, and be this effect rather
than another one or a mere change of quality. How well the rest is kept does not matter.
Answer with JSON alone: {{"reason": "one short sentence", "happened": true or false}}"""
_KEPT = """\
The first picture is a photograph. The second is what an image editor made of it when asked for the
visual effect "{name}" ("{prompt}").
Leaving aside what the effect itself must change: how well is the subject of the photograph kept,
its identity, pose, parts and surroundings? 5: entirely. 4: tiny slips. 3: recognisable, with clear
slips. 2: much is lost. 1: hardly recognisable. 0: another subject, or none.
Answer with JSON alone: {{"reason": "one short sentence", "score": a number from 0 to 5}}"""


def read_happened(answer: str) -> bool:
    """The verdict in a first stage's answer. Raises ValueError (the model is told): none in it."""
    value = json_in(answer).get("happened")
    if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no"):
        value = value.lower() in ("true", "yes")
    if not isinstance(value, bool):
        raise ValueError('it has no "happened" that is true or false')
    return value


def read_kept(answer: str) -> float:
    """The score in a second stage's answer. Raises ValueError (the model is told): none in it."""
    value = json_in(answer).get("score")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError('it has no "score" that is a number')
    if not WORST <= value <= BEST:
        raise ValueError(f"its score {value} is not from 0 to 5")
    return float(value)


def ask_judgement(endpoint: Endpoint, row: Mapping[str, Any]) -> Settled[bool] | Settled[float]:
    """Ask one stage's question about one output.

    ``row``: stage, name, prompt, source (a file), example (a file or empty), pictures (the tensor
    store's folder), picture (its key there), seed.
    """
    parts = shown(row)
    first, example = row["stage"] == "happened", ""
    if first and row["example"]:
        image = open_image(at_hand(str(row["example"])))
        parts += [text_part("The effect on another photograph:"), picture_part(image)]
        example = " The third picture shows the effect on another photograph."
    words = {"name": str(row["name"]).replace("_", " "), "prompt": row["prompt"]}
    question = _HAPPENED.format(**words, example=example) if first else _KEPT.format(**words)
    messages = [{"role": "user", "content": [*parts, text_part(question)]}]
    seed = int(row["seed"])
    if first:
        return endpoint.settle(messages, read_happened, MAX_TOKENS, seed)
    return endpoint.settle(messages, read_kept, MAX_TOKENS, seed)


def shown(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A message's parts that show a photograph and what was made of it, at the output's size."""
    output = np.asarray(_store(str(row["pictures"])).get(str(row["picture"])).numpy())
    source = to_image(open_source(at_hand(str(row["source"])), *output.shape[:2]))
    return [
        text_part("The photograph:"),
        picture_part(source),
        text_part("What was made of it:"),
        picture_part(to_image(output)),
    ]


def vsa(happened: bool, kept: float | None) -> float:
    """An output's VSA, 0 to 5: 0 where the effect did not happen, else how the subject is kept."""
    assert not happened or kept is not None
    return kept if happened and kept is not None else WORST


def json_in(answer: str) -> dict[str, Any]:
    """The last JSON object in an answer (models think aloud before it)."""
    decoder, found, place = json.JSONDecoder(), None, 0
    while (place := answer.find("{", place)) >= 0:
        try:
            value, place = decoder.raw_decode(answer, place)
            found = value if isinstance(value, dict) else found
        except (ValueError, RecursionError):
            place += 1
    if found is None:
        raise ValueError("it holds no JSON object")
    return found


@lru_cache(maxsize=2)
def _store(folder: str) -> TensorStore:
    return TensorStore([local_path(folder)])
