"""Reading a bank's files, which came from others: bounded lines, typed rows, no path outside."""

import json
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from pydantic import ValidationError

from pipeline.config_types import Section
from pipeline.problems import Problem, from_pydantic

MAX_LINE = 64 * 1024
MAX_PROBLEMS_A_FILE = 20

Entry = TypeVar("Entry", bound=Section)


def json_lines(path: Path, problems: list[Problem]) -> list[tuple[int, Any]]:
    """(line number from 1, value) of each row of a JSONL file; empty lines are passed over."""
    rows: list[tuple[int, Any]] = []
    remedy = "give one JSON object a line"
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                place = f"line {number}"
                if len(line) > MAX_LINE:
                    what = f"longer than {MAX_LINE} bytes"
                    problems.append(Problem(str(path), place, None, what, remedy))
                    break
                try:
                    if line.strip():
                        rows.append((number, json.loads(line.decode())))
                except (ValueError, RecursionError) as error:
                    what = f"not JSON ({error})"
                    problems.append(Problem(str(path), place, None, what, remedy))
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        problems.append(Problem(str(path), "", None, what, remedy))
    return rows


def parse(
    kind: type[Entry], file: Path, place: str, data: Any, problems: list[Problem]
) -> Entry | None:
    """One entry of a file as its type, or None and what is wrong with it."""
    if not isinstance(data, dict):
        remedy = f"give a mapping with {', '.join(kind.model_fields)}"
        problems.append(Problem(str(file), place, data, "not a mapping", remedy))
        return None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems += [from_pydantic(str(file), e, place) for e in error.errors()]
        return None


def inside(
    bank: Path, file: Path, place: str, given: str, problems: list[Problem], kind: str = "file"
) -> Path | None:
    """The path of a file (or folder) of the bank, which ``file`` names at ``place``."""

    def refuse(what: str, remedy: str) -> None:
        problems.append(Problem(str(file), place, given, what, remedy))

    if "://" in given:
        refuse("an address, not a path", "give a path in the bank; the whole bank may be in S3")
        return None
    parts = PurePosixPath(given)
    stays = "give a path relative to the bank's folder and inside it"
    if parts.is_absolute() or ".." in parts.parts:
        refuse("the path leaves the bank", stays)
        return None
    path = bank.parent / parts
    try:
        # After links are followed: a link inside may point anywhere.
        if not path.resolve().is_relative_to(bank.parent.resolve()):
            refuse("the path leaves the bank through a link", stays)
            return None
        exists = path.is_dir() if kind == "folder" else path.is_file()
    except (OSError, RuntimeError) as error:
        refuse(f"cannot be looked up ({error})", stays)
        return None
    if not exists:
        refuse(f"no such {kind}", f"add the {kind} or correct the path")
        return None
    return path


def pictures_inside(
    bank: Path, file: Path, place: str, given: Sequence[str], problems: list[Problem]
) -> tuple[Path, ...] | None:
    """The paths of a row's pictures, or None where any is wrong."""
    places = [place] if len(given) == 1 else [f"{place}.{i}" for i in range(len(given))]
    found = [inside(bank, file, p, g, problems) for p, g in zip(places, given, strict=True)]
    right = tuple(path for path in found if path is not None)
    return right if len(right) == len(given) else None


def bounded(problems: list[Problem]) -> list[Problem]:
    """A file that is wrong throughout is not reported row by row."""
    more = len(problems) - MAX_PROBLEMS_A_FILE
    if more <= 0:
        return problems
    last = Problem(problems[0].file, "", None, f"and {more} more problems", "correct these first")
    return [*problems[:MAX_PROBLEMS_A_FILE], last]
