"""The recipe's sections about students in training and in use: ``watch`` and ``promote``."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config_types import Count, Positive, Section

Margin = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]


class WatchSettings(Section):
    """Looks at the student while it trains. They change no bit of the training.

    every: rounds between looks, each with a checkpoint; 0: none. held_back: pictures an effect
    beyond ``targets.sources``, of the bank's training side, that only looks see: their teachers'
    targets are what the student is scored against. pictures: rows of a preview. keep: which
    checkpoint becomes the student. patience: looks in a row worse than the best by more than the
    share ``tolerance`` before they are called a collapse.
    """

    every: Count = 0
    held_back: Positive = 2
    pictures: Positive = 6
    keep: Literal["last", "best"] = "best"
    patience: Positive = 2
    tolerance: Margin = 0.05


class PromoteSettings(Section):
    """When ``collectionlora promote`` moves the alias ``champion``.

    By metric, how much worse than the champion's a student's mean may be, in the metric's own
    units; metrics that are not named are not looked at.
    """

    model: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")] | None = None
    worse_by: dict[Literal["fidelity", "texture_distance", "bad_case_rate", "subject"], Margin] = (
        Field(
            default={"bad_case_rate": 0.0, "fidelity": 0.1, "texture_distance": 0.005}, min_length=1
        )
    )
