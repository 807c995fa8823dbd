"""Reading the folder that the export stage wrote: it may come from anyone, so it is checked."""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.bank import EffectName, Words
from pipeline.models.families import family_of
from pipeline.models.local import HUB, hub_name, local_model
from pipeline.models.lora_formats import WEIGHTS_FILE
from pipeline.problems import InputError, Problem, from_pydantic
from pipeline.yaml_file import parse_yaml

EFFECTS_FILE = "effects.json"
CARD = "README.md"
# Beside the card's base_model, which is no place for a revision.
REVISION = "base_revision"
MAX_BYTES = 8 * 2**20
SHOWN = 6


class ExportedEffect(BaseModel):
    """One effect that the student makes, and what it is prompted with."""

    model_config = ConfigDict(extra="ignore")

    effect: EffectName
    trigger: str = ""
    prompt: Words


class EffectsFile(BaseModel):
    """``effects.json`` of an export."""

    model_config = ConfigDict(extra="ignore")

    steps: Annotated[int, Field(ge=1, le=1000)]
    shift: Annotated[float, Field(gt=0, le=1000)]
    effects: Annotated[list[ExportedEffect], Field(min_length=1)]


@dataclass(frozen=True)
class StudentExport:
    """An exported student: what it is sampled with and where its base is.

    prompts: the student's prompt of each effect, in the bank's order.
    """

    folder: Path
    base: Path
    steps: int
    shift: float
    prompts: dict[str, str]

    @property
    def weights(self) -> Path:
        """The LoRA file."""
        return self.folder / WEIGHTS_FILE

    def check_effects(self, names: Sequence[str], field: str) -> list[Problem]:
        """A problem for each name that the student does not know, with the nearest it does."""
        file, what = str(self.folder / EFFECTS_FILE), "no such effect"
        return [
            Problem(file, field, name, what, self.instead_of(name))
            for name in dict.fromkeys(names)
            if name not in self.prompts
        ]

    def instead_of(self, name: str) -> str:
        """What to give instead of an unknown effect: the nearest names, by spelling."""
        nearest = difflib.get_close_matches(name[:64].lower(), self.prompts, n=3, cutoff=0.5)
        if nearest:
            return f"nearest: {', '.join(nearest)}"
        some = list(self.prompts)[:SHOWN]
        more = len(self.prompts) - len(some)
        return f"it makes {', '.join(some)}" + (f" and {more} more" if more else "")


def read_export(folder: Path, base: str | Path | None = None) -> StudentExport:
    """Check an export's folder and read what sampling needs, without loading any weights.

    base: the model's folder or address; where none is given, the one that the export's card names.
    An address is fetched.

    Raises:
        InputError: everything that is missing or broken, in one report.
    """
    if not folder.is_dir():
        what, remedy = "no such folder", "give the student/ folder that a run exported"
        raise InputError([Problem(str(folder), "", None, what, remedy)])
    problems: list[Problem] = []
    effects = _read_effects(folder / EFFECTS_FILE, problems)
    if not (folder / WEIGHTS_FILE).is_file():
        what = f"no {WEIGHTS_FILE} in it"
        problems.append(Problem(str(folder), "", None, what, "give a whole export"))
    found = _find_base(folder, base, problems)
    if problems:
        raise InputError(problems)
    assert effects is not None and found is not None
    prompts = {entry.effect: entry.prompt for entry in effects.effects}
    return StudentExport(folder, found, effects.steps, effects.shift, prompts)


def _read_effects(path: Path, problems: list[Problem]) -> EffectsFile | None:
    remedy = "give the student/ folder that a run exported"
    try:
        if path.stat().st_size > MAX_BYTES:
            problems.append(Problem(str(path), "", None, f"larger than {MAX_BYTES} bytes", remedy))
            return None
        read = EffectsFile.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        problems.append(Problem(str(path), "", None, f"cannot be read: {error.strerror}", remedy))
    except ValidationError as error:
        problems += [from_pydantic(str(path), entry) for entry in error.errors()]
    except (ValueError, RecursionError) as error:
        what = f"not JSON: {' '.join(str(error).split())[:120]}"
        problems.append(Problem(str(path), "", None, what, remedy))
    else:
        names = [entry.effect for entry in read.effects]
        for name in sorted({n for n in names if names.count(n) > 1}):
            problems.append(Problem(str(path), "effects", name, "named twice", "keep one"))
        return read
    return None


def _find_base(folder: Path, base: str | Path | None, problems: list[Problem]) -> Path | None:
    file, field = ("--base", "") if base is not None else (str(folder / CARD), "base_model")
    remedy = "give the base model's folder or hf:// address with --base"
    try:
        found = local_model(base if base is not None else _base_of_card(folder / CARD))
        family_of(found)
    except (ValueError, OSError) as error:
        what = " ".join(str(error).split())
        problems.append(Problem(file, field, None, f"no base model there: {what}", remedy))
        return None
    return found


def _base_of_card(card: Path) -> str:
    """``base_model`` of a model card's front matter: a path, or an address.

    The Hub's own cards name a model of the Hub as ``owner/name``, and so do ours.
    """
    text = card.read_text(encoding="utf-8")[:65536]
    parts = text.split("---\n")
    front = parse_yaml(parts[1]) if text.startswith("---\n") and len(parts) > 2 else None
    front = front if isinstance(front, dict) else {}
    named = front.get("base_model")
    if not isinstance(named, str):
        raise ValueError("the card names none")
    if Path(named).is_dir() or not hub_name(named):
        return named
    revision = front.get(REVISION)
    return f"{HUB}{named}" + (f"@{revision}" if isinstance(revision, str) else "")
