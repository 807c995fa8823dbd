"""What is wrong: a user's input (collected, not thrown one by one), or the storage under a run."""

import errno
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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


class StorageError(Exception):
    """A disk or an object store failed: one sentence, with what to do. The CLI exits with 1."""


@contextmanager
def disk_errors(place: str | os.PathLike[str]) -> Iterator[None]:
    """A full disk, a spent quota or a disk that cannot be written to, as :class:`StorageError`.

    Libraries say it in exceptions of their own (safetensors, pyarrow), but all in the system's
    words.
    """
    try:
        yield
    except StorageError:
        raise
    except Exception as error:
        number = getattr(error, "errno", None) or _os_error(str(error))
        if number not in _DISK:
            raise
        raise StorageError(
            f"{place}: {_DISK[number]}; free some space or name another output, then the same "
            "command goes on from here"
        ) from error


def storage_failure(error: BaseException | None) -> StorageError | None:
    """The storage's failure behind an exception that Ray wrapped, if that is what it is."""
    seen: list[BaseException] = []
    todo = [error]
    while todo:
        one = todo.pop()
        if one is None or one in seen:
            continue
        if isinstance(one, StorageError):
            # A Ray task's exception is of the class of its cause as well, with a long text.
            cause = getattr(one, "cause", None)
            found = cause if isinstance(cause, StorageError) else one
            # Ray Data writes advice of its own below ours.
            return StorageError(str(found).partition("\n")[0])
        seen.append(one)
        todo += [one.__cause__, getattr(one, "cause", None)]
        todo += [getattr(one, "controller_failure", None)]
        todo += list(getattr(one, "worker_failures", {}).values())
    return None


_DISK = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "larger than a file may be here",
    errno.EROFS: "the disk is read-only",
}


def _os_error(text: str) -> int | None:
    found = re.search(r"\bos error (\d+)\b|\[[Ee]rrno (\d+)\]", text)
    return int(found[1] or found[2]) if found else None


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
