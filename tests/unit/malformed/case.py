"""One malformed input, and what the report must say of it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.unit.malformed.good_bank import Work


@dataclass(frozen=True)
class Case:
    """``spoil`` changes a good work, saved after it; one line of the report has all the rest."""

    name: str
    spoil: Callable[[Work], None]
    file: str
    field: str
    remedy: str
