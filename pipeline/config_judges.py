"""The recipe's judges of the field."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from pipeline.config_prompts import EndpointSettings
from pipeline.config_types import PathText, Positive, Section


def _no_folder(given: object) -> object:
    """Raises ValueError for a folder of EditReward's weights, saying what can be done instead."""
    if isinstance(given, str):
        raise ValueError(
            "EditReward's weights run in their authors' own package (EditReward, from its GitHub "
            "repository), which this project does not bring: install and serve it, and name that "
            "endpoint here as {url: ..., model: ...}"
        )
    return given


class JudgeSettings(Section):
    """Judges of the field for full-size runs; each is optional, and a local folder or endpoint.

    clip, dino: transformers folders; dreamsim: a folder of one transformers folder a branch;
    edit_reward: an endpoint around EditReward, which answers ``{"reward": number}``;
    vlm: the two-stage judge, asked ``passes`` times each (two give the judge's agreement with
    itself); folders are run ``batch`` pictures at a time, in the encoder pool.
    """

    clip: PathText | None = None
    dino: PathText | None = None
    dreamsim: PathText | None = None
    edit_reward: Annotated[EndpointSettings | None, BeforeValidator(_no_folder)] = None
    vlm: EndpointSettings | None = None
    passes: Annotated[int, Field(ge=1, le=5)] = 2
    batch: Positive = 16
