"""The sizes of the reports of a bench that have several of their own."""

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config_types import Name, Overrides, PathText, Positive, Section

AblationRow = Literal[
    "PDSR",
    "PDSR + AOP",
    "PDSR + AOP + TS",
    "all",
    "all - PDSR",
    "all - AOP",
    "all - TS",
    "all - bounds",
    "all, TA-FM as published",
]


class GrowthReport(Section):
    """Effects added to the finished student of the main report.

    bank: a bank of the new effects alone (null: the miniature's own new ones, written by the
    bench); effects: some of it, in any order (null: all of it); set: overrides of the recipe.
    """

    bank: PathText | None = None
    effects: tuple[Name, ...] | None = Field(default=None, min_length=1, strict=False)
    set: Overrides = {"distill.rounds": 100}


class ReportSizes(Section):
    """How much is asked.

    pairs: of effects, for composition; bank: LoRAs, for deployment; queries: shuffled ones, at
    each size of the bank.
    """

    pairs: Positive = 12
    bank: tuple[Positive, ...] = Field(default=(10, 50, 100, 150), min_length=1, strict=False)
    queries: Annotated[int, Field(ge=2)] = 200
