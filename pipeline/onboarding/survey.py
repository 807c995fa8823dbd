"""What a folder of LoRA files and pictures holds; nothing is written, no picture is opened."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.bank_pairs import Pairing, has_target, is_role, pair_up, pictures_in
from pipeline.convert import describe
from pipeline.models.lora.layout import layout_of
from pipeline.models.lora_formats import Shapes, lora_problems, read_lora
from pipeline.models.safetensors_files import read_header
from pipeline.onboarding.names import effect_name, own_name, same_effect, slug, training_step
from pipeline.onboarding.prompts import FoundPrompt, prompt_of
from pipeline.problems import InputError, Problem

MAX_FILES = 200_000
PHOTOGRAPHS = {"photographs", "photos", "sources", "unlabelled", "unlabeled"}
TEST = {"test", "tests", "held_out", "holdout", "heldout", "eval", "validation", "effectbench"}
PICKLES = {".bin", ".pt", ".pth", ".ckpt"}


@dataclass(frozen=True)
class FoundEffect:
    """One effect: a LoRA, a folder of pairs, or both; ``lora`` says how it looks inside."""

    name: str
    adapter: Path | None
    lora: str
    pairs_folder: Path | None
    pairs: Pairing
    prompt: FoundPrompt | None


@dataclass
class Survey:
    """All that was found; ``notes`` is what was passed over, and why."""

    folder: Path
    effects: list[FoundEffect] = field(default_factory=list)
    photographs: Path | None = None
    test: Path | None = None
    pairs_file: Path | None = None
    general_file: Path | None = None
    notes: list[str] = field(default_factory=list)

    def relative(self, path: Path) -> str:
        """A path as the bank gives it."""
        return path.relative_to(self.folder).as_posix()


@dataclass(frozen=True)
class _Lora:
    path: Path
    name: str
    text: str
    metadata: dict[str, str]


def survey(folder: Path, layers: Shapes | None) -> Survey:
    """Look through a folder. ``layers`` are the base's: LoRAs are checked against them.

    Raises:
        InputError: no such folder, too many files in it, or neither a LoRA nor pairs.
    """
    if not folder.is_dir():
        raise _refused(folder, "no such folder", "name the folder with your LoRAs and pairs")
    found = Survey(folder)
    files, folders = _walk(found)
    loras = _loras(found, files, layers)
    pairs = _pairs(found, folders)
    taken: set[Path] = set()
    for lora in loras:
        where = _pairs_for(lora, loras, pairs, taken)
        pairing = pairs[where] if where else Pairing((), ())
        taken |= {where} if where else set()
        prompt = prompt_of(lora.path, lora.metadata, [target for _, target in pairing.pairs])
        found.effects.append(FoundEffect(lora.name, lora.path, lora.text, where, pairing, prompt))
    names = {lora.name for lora in loras}
    for where, pairing in pairs.items():
        if where in taken:
            continue
        if where == folder:
            found.notes.append(
                f"{len(pairing.pairs)} pairs right in the folder: give each effect a folder"
            )
            continue
        name = _unique(effect_name(where), names)
        names.add(name)
        prompt = prompt_of(None, {}, [target for _, target in pairing.pairs])
        found.effects.append(FoundEffect(name, None, "", where, pairing, prompt))
    if not found.effects:
        what = "neither a LoRA (.safetensors) nor image pairs"
        notes = "; ".join(found.notes[:3])
        raise _refused(
            folder, f"{what}{f' ({notes})' if notes else ''}", "see the README for names"
        )
    found.effects.sort(key=lambda effect: effect.name)
    return found


def _walk(found: Survey) -> tuple[list[Path], list[Path]]:
    """Files and folders below, less hidden ones, models and what a run makes."""
    files: list[Path] = []
    folders: list[Path] = []
    kinds: dict[str, list[Path]] = {"photographs": [], "test": []}
    for place, inner, names in os.walk(found.folder):
        here = Path(place)
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if "model_index.json" in names or {"training", "cache"} <= set(inner):
            inner.clear()
            found.notes.append(f"{here}: a model or a run's output, passed over")
            continue
        kind = slug(here.name)
        unlabelled = kind in PHOTOGRAPHS and not has_target(here)
        if here != found.folder and (unlabelled or kind in TEST):
            # What lies in it is not looked at as pairs.
            if kind in TEST:
                if any(map(pictures_in, (here, *(here / i for i in inner)))):
                    kinds["test"].append(here)
            elif pictures_in(here):
                kinds["photographs"].append(here)
            inner.clear()
            continue
        folders.append(here)
        files += [here / name for name in sorted(names) if not name.startswith(".")]
        if len(files) > MAX_FILES:
            raise _refused(found.folder, f"more than {MAX_FILES} files", "name a smaller folder")
    for place, those in kinds.items():
        # The bank's own lies above those of single effects.
        those.sort(key=lambda path: (len(path.parts), path))
        if those:
            setattr(found, place, those[0])
        for other in those[1:]:
            found.notes.append(f"{found.relative(other)}: another of {those[0].name}, not taken")
    for name, place in (("pairs.jsonl", "pairs_file"), ("general.jsonl", "general_file")):
        if found.folder / name in files:
            setattr(found, place, found.folder / name)
    return files, folders


def _loras(found: Survey, files: list[Path], layers: Shapes | None) -> list[_Lora]:
    """Every readable LoRA, the last checkpoint of each; the others are noted."""
    best: dict[tuple[Path, str], Path] = {}
    for path in files:
        if path.suffix in PICKLES:
            found.notes.append(f"{found.relative(path)}: not safetensors, never opened")
        if path.suffix != ".safetensors":
            continue
        # Without a name that is left in a-z, two effects would be one another's checkpoints.
        place = (path.parent, own_name(path) or effect_name(path))
        rival = best.get(place)
        if rival is None or training_step(path) >= training_step(rival):
            best[place] = path
        if rival is not None:
            other = rival if best[place] == path else path
            found.notes.append(f"{found.relative(other)}: another of {best[place].name}, not taken")
    loras: list[_Lora] = []
    for path in best.values():
        try:
            lora = read_lora(path, layers)
            keys = [key for key in read_header(path, ".alpha") if key != "__metadata__"]
        except InputError as error:
            found.notes.append(f"{found.relative(path)}: {error.problems[0].what}, not taken")
            continue
        if problems := lora_problems(lora, layers):
            found.notes.append(f"{found.relative(path)}: {problems[0].what}, not taken")
            continue
        name = _unique(effect_name(path.relative_to(found.folder)), {each.name for each in loras})
        text = f"{layout_of(path.name, keys)} layout, {describe(lora)}"
        loras.append(_Lora(path, name, text, lora.metadata))
    return loras


def _pairs(found: Survey, folders: list[Path]) -> dict[Path, Pairing]:
    pairs = {}
    for folder in folders:
        if is_role(folder.name) and folder != found.folder:
            continue
        pairing = pair_up(folder)
        if pairing.pairs:
            pairs[folder] = pairing
        if pairing.pairs and pairing.alone:
            names = ", ".join(path.name for path in pairing.alone[:3])
            found.notes.append(f"{folder}: {len(pairing.alone)} pictures have no partner ({names})")
    return pairs


def _pairs_for(
    lora: _Lora, loras: list[_Lora], pairs: dict[Path, Pairing], taken: set[Path]
) -> Path | None:
    """The folder of a LoRA's pairs: of the same name, else the only one like it, else beside it."""
    free = [folder for folder in pairs if folder not in taken]
    own = own_name(lora.path)
    same = [folder for folder in free if own and own_name(folder) == own]
    same = same or [folder for folder in free if effect_name(folder) == lora.name]
    if not same:
        like = [f for f in free if same_effect(effect_name(f), lora.name)]
        rivals = [x for x in loras if x is not lora]
        same = [f for f in like if not any(effect_name(f) == rival.name for rival in rivals)]
    if not same:
        alone = sum(other.path.parent == lora.path.parent for other in loras) == 1
        same = [f for f in free if alone and lora.path.parent in (f, f.parent)]
    return same[0] if len(same) == 1 else None


def _unique(name: str, taken: set[str]) -> str:
    number, unique = 2, name
    while unique in taken:
        unique, number = f"{name[:60]}_{number}", number + 1
    return unique


def _refused(folder: Path, what: str, remedy: str) -> InputError:
    return InputError([Problem(str(folder), "", None, what, remedy)])
