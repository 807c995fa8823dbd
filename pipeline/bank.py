"""The effect bank: a folder of teachers' adapters, pairs and photographs, described by bank.yaml.

Everything in it came from others: names and paths are checked here, and no path leaves the folder.
See the README for a worked bank.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, TypeVar

from pydantic import Field, ValidationError

from pipeline.config import Name, PathText, Section
from pipeline.images import SUFFIXES
from pipeline.problems import InputError, Problem, from_pydantic
from pipeline.yaml_file import read_mapping

MAX_LINE = 64 * 1024
MAX_PROBLEMS_A_FILE = 20

EffectName = Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
Words = Annotated[str, Field(pattern=r"\S", max_length=8192)]
Trigger = Annotated[str, Field(pattern=r"^[^\s\p{C}]{1,128}$")]


@dataclass(frozen=True)
class Effect:
    """One effect; adapter None is trained from the pairs, trigger and caption None are made."""

    name: str
    prompt: str
    adapter: Path | None
    category: str
    weight: float
    description: str
    trigger: str | None
    caption: str | None


@dataclass(frozen=True)
class Pair:
    """A training pair of an effect: a photograph and its edited version."""

    effect: str
    source: Path
    target: Path


@dataclass(frozen=True)
class Instruction:
    """A row of the general stream: a photograph and an instruction, without a target."""

    image: Path
    prompt: str


@dataclass(frozen=True)
class Bank:
    """A bank, or the part of it that a recipe takes; effects in bank.yaml's order."""

    folder: Path
    effects: tuple[Effect, ...]
    pairs: tuple[Pair, ...]
    general: tuple[Instruction, ...]
    photographs: tuple[Path, ...]
    test: tuple[Path, ...]

    def pairs_of(self, name: str) -> tuple[Pair, ...]:
        """The pairs of one effect, in the file's order."""
        return tuple(pair for pair in self.pairs if pair.effect == name)


class _BankFile(Section):
    effects: tuple[Any, ...] = Field(default=(), strict=False)
    pairs: PathText | None = None
    general: PathText | None = None
    photographs: PathText | None = None
    test: PathText | None = None


class _EffectEntry(Section):
    name: EffectName
    prompt: Words
    adapter: PathText | None = None
    category: Name = "general"
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    description: Annotated[str, Field(max_length=8192)] = ""
    trigger: Trigger | None = None
    caption: Words | None = None


class _PairRow(Section):
    effect: str
    source: PathText
    target: PathText


class _InstructionRow(Section):
    image: PathText
    prompt: Words


Entry = TypeVar("Entry", bound=Section)


@dataclass(frozen=True)
class Inspection:
    """What can be read of a bank (None: nothing), and all that is wrong with it.

    ``broken`` are the top-level fields that something is wrong with.
    """

    bank: Bank | None
    problems: list[Problem]
    broken: frozenset[str] = frozenset()


def load_bank(path: str | Path, effects: Sequence[str] | None = None) -> Bank:
    """Read a bank: ``path`` is its folder or its bank.yaml; ``effects`` takes a part of it.

    Files are looked up, not opened; ``pipeline.validation`` looks inside.

    Raises:
        InputError: all that is wrong with the bank, in one report.
    """
    found = inspect_bank(path, effects)
    if found.bank is None or found.problems:
        raise InputError(found.problems)
    return found.bank


def inspect_bank(path: str | Path, effects: Sequence[str] | None = None) -> Inspection:
    """As :func:`load_bank`, but one broken part does not hide the others."""
    file = bank_file(path)
    try:
        data = read_mapping(file, "give a bank: a folder with bank.yaml, as in the README")
    except InputError as error:
        return Inspection(None, error.problems)
    problems: list[Problem] = []
    content = _content(file, data, problems)
    broken = {p.field for p in problems}
    declared = [e.get("name") if isinstance(e, dict) else None for e in content.effects]
    wanted = _wanted(file, declared, effects, problems)
    found = _effects(file, content.effects, wanted, problems)
    reports: dict[str, list[Problem]] = {
        field: [] for field in ("pairs", "general", "photographs", "test")
    }
    pairs, with_rows = _pairs(file, content.pairs, declared, wanted, reports["pairs"])
    general = _general(file, content.general, reports["general"])
    photographs = _photographs(file, "photographs", content.photographs, reports["photographs"])
    test = _photographs(file, "test", content.test, reports["test"])
    for i, effect in found:
        if effect.adapter is None and with_rows is not None and effect.name not in with_rows:
            what = f"effect {effect.name!r} has neither pairs nor an adapter"
            remedy = "add rows to pairs, or an adapter"
            problems.append(Problem(str(file), f"effects.{i}", None, what, remedy))
    for field, report in reports.items():
        if report:
            broken.add(field)
            problems += _bounded(report)
    chosen = tuple(effect for _, effect in found)
    bank = Bank(file.parent, chosen, pairs, general, photographs, test)
    return Inspection(bank, problems, frozenset(broken))


def bank_file(path: str | Path) -> Path:
    """The bank.yaml of a bank given as its folder or as that file."""
    path = Path(path)
    return path / "bank.yaml" if path.is_dir() else path


def _content(file: Path, data: dict[str, Any], problems: list[Problem]) -> _BankFile:
    try:
        content = _BankFile.model_validate(data)
    except ValidationError as error:
        found = error.errors()
        problems += [from_pydantic(str(file), e) for e in found]
        wrong = {e["loc"][0] for e in found}
        rest = {k: v for k, v in data.items() if k in _BankFile.model_fields and k not in wrong}
        content = _BankFile.model_validate(rest)
        if "effects" in wrong:
            return content
    if not content.effects:
        problems.append(
            Problem(str(file), "effects", None, "the bank is empty", "list at least one effect")
        )
    return content


def _wanted(
    file: Path,
    declared: Sequence[object],
    effects: Sequence[str] | None,
    problems: list[Problem],
) -> set[object]:
    if effects is None:
        return set(declared)
    names = ", ".join(str(name) for name in declared if name is not None)
    for i, name in enumerate(effects):
        if name not in declared and declared:
            what = "the recipe's effects name one that the bank lacks"
            problems.append(Problem(str(file), "effects", name, what, f"the bank has: {names}"))
        elif name in effects[:i]:
            what = "named twice in the recipe's effects"
            problems.append(Problem(str(file), "effects", name, what, "name it once"))
    return set(effects)


def _effects(
    file: Path, entries: Sequence[Any], wanted: set[object], problems: list[Problem]
) -> list[tuple[int, Effect]]:
    """The wanted effects with their places in the list; names and triggers are unique."""
    names: dict[str, int] = {}
    triggers: dict[str, int] = {}
    found: list[tuple[int, Effect]] = []
    for i, data in enumerate(entries):
        entry = _parse(_EffectEntry, file, f"effects.{i}", data, problems)
        if entry is None:
            continue
        if entry.name in names:
            what = f"named twice (also effects.{names[entry.name]})"
            remedy = "give each effect its own name"
            problems.append(Problem(str(file), f"effects.{i}.name", entry.name, what, remedy))
            continue
        names[entry.name] = i
        if entry.trigger is not None:
            if entry.trigger in triggers:
                what = f"trigger used twice (also effects.{triggers[entry.trigger]})"
                place, remedy = f"effects.{i}.trigger", "give each effect its own, or leave it out"
                problems.append(Problem(str(file), place, entry.trigger, what, remedy))
            triggers.setdefault(entry.trigger, i)
        if entry.name not in wanted:
            continue
        adapter = None
        if entry.adapter is not None:
            place = f"effects.{i}.adapter"
            adapter = _inside(file, file, place, entry.adapter, problems)
        fields = entry.model_dump() | {"adapter": adapter}
        # A wrong adapter stays in the report; the effect is not also one without an adapter.
        if entry.adapter is None or adapter is not None:
            found.append((i, Effect(**fields)))
    return found


def _pairs(
    file: Path,
    given: str | None,
    declared: Sequence[object],
    wanted: set[object],
    problems: list[Problem],
) -> tuple[tuple[Pair, ...], set[str] | None]:
    """The wanted pairs, and the effects that have rows, right or wrong (None: unreadable)."""
    if given is None:
        return (), set()
    path = _inside(file, file, "pairs", given, problems)
    if path is None:
        return (), None
    pairs = []
    with_rows: set[str] = set()
    # A broken list of effects is in the report already; each row would repeat it.
    names_known = bool(declared) and all(isinstance(name, str) for name in declared)
    for line, data in _lines(path, problems):
        name = data.get("effect") if isinstance(data, dict) else None
        if isinstance(name, str):
            with_rows.add(name)
        row = _parse(_PairRow, path, f"line {line}", data, problems)
        if row is None:
            continue
        if row.effect not in declared:
            if not names_known:
                continue
            remedy = f"add the effect to {file.name}, or remove the row"
            what = "effect is not in the bank"
            problems.append(Problem(str(path), f"line {line}.effect", row.effect, what, remedy))
        elif row.effect in wanted:
            source = _inside(file, path, f"line {line}.source", row.source, problems)
            target = _inside(file, path, f"line {line}.target", row.target, problems)
            if source is not None and target is not None:
                pairs.append(Pair(row.effect, source, target))
    return tuple(pairs), with_rows


def _general(file: Path, given: str | None, problems: list[Problem]) -> tuple[Instruction, ...]:
    path = None if given is None else _inside(file, file, "general", given, problems)
    if path is None:
        return ()
    rows = []
    for line, data in _lines(path, problems):
        row = _parse(_InstructionRow, path, f"line {line}", data, problems)
        if row is not None:
            image = _inside(file, path, f"line {line}.image", row.image, problems)
            if image is not None:
                rows.append(Instruction(image, row.prompt))
    return tuple(rows)


def _photographs(
    file: Path, place: str, given: str | None, problems: list[Problem]
) -> tuple[Path, ...]:
    if given is None:
        return ()
    folder = _inside(file, file, place, given, problems, kind="folder")
    if folder is None:
        return ()
    names = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.suffix.lower() in SUFFIXES and not entry.name.startswith(".")
    )
    if not names:
        remedy = f"add files ending in {', '.join(SUFFIXES)}, or remove the field"
        problems.append(Problem(str(file), place, given, "a folder without images", remedy))
    found = (_inside(file, file, place, f"{given}/{name}", problems) for name in names)
    return tuple(path for path in found if path is not None)


def _lines(path: Path, problems: list[Problem]) -> list[tuple[int, Any]]:
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


def _parse(
    kind: type[Entry], file: Path, place: str, data: Any, problems: list[Problem]
) -> Entry | None:
    if not isinstance(data, dict):
        remedy = f"give a mapping with {', '.join(kind.model_fields)}"
        problems.append(Problem(str(file), place, data, "not a mapping", remedy))
        return None
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        problems += [from_pydantic(str(file), e, place) for e in error.errors()]
        return None


def _inside(
    bank: Path, file: Path, place: str, given: str, problems: list[Problem], kind: str = "file"
) -> Path | None:
    """The path of a file (or folder) of the bank, which ``file`` names at ``place``."""

    def refuse(what: str, remedy: str) -> None:
        problems.append(Problem(str(file), place, given, what, remedy))

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


def _bounded(problems: list[Problem]) -> list[Problem]:
    """A file that is wrong throughout is not reported row by row."""
    more = len(problems) - MAX_PROBLEMS_A_FILE
    if more <= 0:
        return problems
    last = Problem(problems[0].file, "", None, f"and {more} more problems", "correct these first")
    return [*problems[:MAX_PROBLEMS_A_FILE], last]
