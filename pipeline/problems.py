"""What is wrong with a user's input: collected, not thrown one by one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


@dataclass(frozen=True)
class Problem:
    """One mistake: the file, the field in it, the value found, what is wrong, what to do."""

    file: str
    field: str
    value: object
    what: str
    remedy: str

    def __str__(self) -> str:
        place = f"{self.file}: {self.field}" if self.field else self.file
        value = "" if self.value is None else f" (found {_short(self.value)})"
        return f"{place}: {self.what}{value}; {self.remedy}"


class InputError(ValueError):
    """The user's input is wrong: ``problems`` lists everything found. The CLI exits with 2."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        assert problems, "an InputError needs a problem"
        self.problems = list(problems)
        super().__init__("\n".join(str(p) for p in problems))


def from_pydantic(file: str, error: "ErrorDetails", prefix: str = "") -> Problem:
    """A pydantic error as a problem; ``prefix`` is the place of the model within the file."""
    field = ".".join([prefix, *map(str, error["loc"])] if prefix else map(str, error["loc"]))
    given = error.get("input")
    remedy = {
        "extra_forbidden": "remove it, or check its spelling",
        "missing": "add it",
        "value_error": "change one of them",
        "string_pattern_mismatch": "write it in the stated form",
    }.get(error["type"], "give a value of the stated type and range")
    shown = None if isinstance(given, dict) else given
    return Problem(file, field, shown, error["msg"].removeprefix("Value error, "), remedy)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
