"""The effect bank: a folder of teachers' adapters, pairs and photographs, described by bank.yaml.

Everything in it came from others: names and paths are checked here, and no path leaves the folder.
See the README for a worked bank.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from pipeline.bank_files import bounded, inside, json_lines, parse, pictures_inside
from pipeline.bank_pairs import pair_up, twins
from pipeline.bank_pictures import held_out, photographs_of
from pipeline.config_types import Name, PathText, Section
from pipeline.mirror import local_path, pinned
from pipeline.problems import InputError, Problem, from_pydantic
from pipeline.yaml_file import read_mapping

# As many as the stock pipelines were made for (QwenImageEditPlusPipeline).
MAX_SOURCES = 3

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
    """A training pair of an effect: one to three source pictures and the edited version."""

    effect: str
    sources: tuple[Path, ...]
    target: Path


@dataclass(frozen=True)
class Instruction:
    """A row of the general stream: one to three pictures and an instruction, without a target."""

    images: tuple[Path, ...]
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
    test: PathText | Annotated[tuple[PathText, ...], Field(strict=False)] | None = None


class _EffectEntry(Section):
    name: EffectName
    prompt: Words
    adapter: PathText | None = None
    pairs: PathText | None = None
    category: Name = "general"
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    description: Annotated[str, Field(max_length=8192)] = ""
    trigger: Trigger | None = None
    caption: Words | None = None


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# One path, or a list of them in the order in which a prompt counts the pictures.
Pictures = Annotated[
    tuple[PathText, ...],
    Field(min_length=1, max_length=MAX_SOURCES, strict=False),
    BeforeValidator(_listed),
]


class _PairRow(Section):
    effect: str
    source: Pictures
    target: PathText


class _InstructionRow(Section):
    image: Pictures
    prompt: Words


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
    in_folders = _pairs_in_folders(file, content.effects, found, reports["pairs"])
    pairs = (*pairs, *in_folders)
    if with_rows is not None:
        with_rows |= {pair.effect for pair in in_folders}
    general = _general(file, content.general, reports["general"])
    photographs = photographs_of(file, "photographs", content.photographs, reports["photographs"])
    test = held_out(file, content.test, reports["test"])
    if isinstance(content.test, tuple):
        pairs, general, photographs = _less_held_out(test, pairs, general, photographs)
    for i, effect in found:
        if effect.adapter is None and with_rows is not None and effect.name not in with_rows:
            what = f"effect {effect.name!r} has neither pairs nor an adapter"
            remedy = "add rows to pairs, or an adapter"
            problems.append(Problem(str(file), f"effects.{i}", None, what, remedy))
    for field, report in reports.items():
        if report:
            broken.add(field)
            problems += bounded(report)
    chosen = tuple(effect for _, effect in found)
    bank = Bank(file.parent, chosen, pairs, general, photographs, test)
    return Inspection(bank, problems, frozenset(broken))


def bank_file(path: str | Path) -> Path:
    """The bank.yaml of a bank given as its folder or as that file.

    Of a bank in S3 the one on this machine, with all of the bank, as this process first saw it.
    """
    text = str(path)
    if text.startswith("s3://"):
        as_file = text.endswith((".yaml", ".yml"))
        folder, _, name = text.rpartition("/") if as_file else (text, "", "bank.yaml")
        return pinned(folder) / name
    path = local_path(path)
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
        blank = isinstance(data, dict) and data.get("prompt", "missing") in (None, "")
        if blank:
            what, remedy = "the teacher prompt is blank", "write what the LoRA was trained with"
            problems.append(Problem(str(file), f"effects.{i}.prompt", None, what, remedy))
            data = data | {"prompt": "blank"}
        entry = parse(_EffectEntry, file, f"effects.{i}", data, problems)
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
            adapter = inside(file, file, place, entry.adapter, problems)
        fields = entry.model_dump(exclude={"pairs"}) | {"adapter": adapter}
        # A wrong adapter stays in the report; the effect is not also one without an adapter.
        if not blank and (entry.adapter is None or adapter is not None):
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
    path = inside(file, file, "pairs", given, problems)
    if path is None:
        return (), None
    pairs = []
    with_rows: set[str] = set()
    # A broken list of effects is in the report already; each row would repeat it.
    names_known = bool(declared) and all(isinstance(name, str) for name in declared)
    for line, data in json_lines(path, problems):
        name = data.get("effect") if isinstance(data, dict) else None
        if isinstance(name, str):
            with_rows.add(name)
        row = parse(_PairRow, path, f"line {line}", data, problems)
        if row is None:
            continue
        if row.effect not in declared:
            if not names_known:
                continue
            remedy = f"add the effect to {file.name}, or remove the row"
            what = "effect is not in the bank"
            problems.append(Problem(str(path), f"line {line}.effect", row.effect, what, remedy))
        elif row.effect in wanted:
            sources = pictures_inside(file, path, f"line {line}.source", row.source, problems)
            target = inside(file, path, f"line {line}.target", row.target, problems)
            if sources is not None and target is not None:
                pairs.append(Pair(row.effect, sources, target))
    return tuple(pairs), with_rows


def _pairs_in_folders(
    file: Path,
    entries: Sequence[Any],
    found: Sequence[tuple[int, Effect]],
    problems: list[Problem],
) -> tuple[Pair, ...]:
    """The pairs of the effects that name a folder of them."""
    pairs: list[Pair] = []
    for i, effect in found:
        given, place = entries[i].get("pairs"), f"effects.{i}.pairs"
        folder = None if given is None else inside(file, file, place, given, problems, "folder")
        if folder is None:
            continue
        paired = pair_up(folder).pairs
        if not paired:
            remedy = "name them as the README says, such as 1_source.png and 1_target.png"
            problems.append(Problem(str(file), place, given, "a folder without pairs", remedy))
        for sources, target in paired:
            paths = [path.relative_to(file.parent).as_posix() for path in (*sources, target)]
            if len(sources) > MAX_SOURCES:
                what = f"{len(sources)} sources for one target"
                remedy = f"give up to {MAX_SOURCES}"
                problems.append(Problem(str(file), place, paths[-1], what, remedy))
            elif pictures_inside(file, file, place, paths, problems) is not None:
                pairs.append(Pair(effect.name, sources, target))
    return tuple(pairs)


def _general(file: Path, given: str | None, problems: list[Problem]) -> tuple[Instruction, ...]:
    path = None if given is None else inside(file, file, "general", given, problems)
    if path is None:
        return ()
    rows = []
    for line, data in json_lines(path, problems):
        row = parse(_InstructionRow, path, f"line {line}", data, problems)
        if row is not None:
            images = pictures_inside(file, path, f"line {line}.image", row.image, problems)
            if images is not None:
                rows.append(Instruction(images, row.prompt))
    return tuple(rows)


def _less_held_out(
    test: Sequence[Path],
    pairs: Sequence[Pair],
    general: Sequence[Instruction],
    photographs: Sequence[Path],
) -> tuple[tuple[Pair, ...], tuple[Instruction, ...], tuple[Path, ...]]:
    """What is trained on, less every picture that the bank lists as held out (by content)."""
    pictures = {path for pair in pairs for path in (*pair.sources, pair.target)}
    pictures |= {path for row in general for path in row.images} | set(photographs)
    out = twins(test, pictures)
    return (
        tuple(p for p in pairs if out.isdisjoint((*p.sources, p.target))),
        tuple(row for row in general if out.isdisjoint(row.images)),
        tuple(path for path in photographs if path not in out),
    )
