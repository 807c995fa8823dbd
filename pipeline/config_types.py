"""What recipes and banks are checked with: their sections, and the numbers in them."""

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
# A NUL in a path is a ValueError in every file function.
PathText = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
# Of a running average: at 1 it would never move.
Decay = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
Guidance = Annotated[float, Field(ge=1, le=30, allow_inf_nan=False)]
Overrides = dict[str, Any]


class Section(BaseModel):
    """A part of the recipe: immutable, unknown keys refused, no silent conversions."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
