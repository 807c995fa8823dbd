"""Write the miniature's bank to a folder, as a user's own bank would lie there.

From here on nothing knows that the effects come from code, except the evaluation, which asks
``effects.py`` for the truth when a recipe says ``truth: miniature``.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import yaml
from numpy.typing import NDArray

from pipeline.miniature import photographs
from pipeline.miniature.edits import GENERAL_EDITS
from pipeline.miniature.effects import KNOWN, VARIANTS, true_samples
from pipeline.miniature.photographs import Split
from pipeline.miniature.pictures import to_image
from pipeline.problems import InputError, Problem
from pipeline.storage import atomic_folder

KEPT_TEACHERS = Path(__file__).parent / "teachers"
SIDE = 64


def write_bank(
    folder: Path,
    effects: Sequence[str],
    pairs: int = 20,
    general: int = 200,
    sources: int = 40,
    test: int = 15,
    seed: int = 0,
    kept_teachers: bool = True,
    validation: bool = False,
    alike: bool = False,
    varied: bool = False,
    variants: int = 0,
) -> None:
    """Draw pairs, general rows, source photographs and held-out ones; write bank.yaml.

    ``kept_teachers`` brings the adapters that are kept in the repository, where there are any;
    without, the ``teach`` stage trains them. ``validation`` holds out photographs of the training
    split instead of the test ones, to choose a recipe on; kept teachers, which have seen them,
    stay out. ``alike`` gives teachers prompts that differ in a number alone, as of LoRAs that all
    came from one template; kept teachers, which know other words, stay out. ``varied`` draws the
    unlabelled photographs with jittered colours or as dead leaves, as the base's were.
    ``variants``: so many parameter variants of the fifty besides ``effects``.

    Raises:
        InputError: an effect that the miniature does not have, or twice, no pairs, no photographs,
            or more variants than there are.
    """
    problems = []
    if pairs < 1:
        remedy = "give 1 or more; 20 is the published number"
        problems.append(Problem("--pairs", "", pairs, "an effect needs pairs", remedy))
    if sources < 1:
        remedy = "give 1 or more"
        problems.append(Problem("--sources", "", sources, "no unlabelled photographs", remedy))
    if not 0 <= variants <= len(VARIANTS):
        remedy = f"give 0 to {len(VARIANTS)}"
        what = "not so many parameter variants"
        problems.append(Problem("--variants", "", variants, what, remedy))
    effects = [*effects, *list(VARIANTS)[: max(0, variants)]]
    twice = [name for name, times in Counter(effects).items() if times > 1]
    remedy = "name it once"
    problems += [Problem("--effects", n, n, "the same effect twice", remedy) for n in twice]
    remedy = "take names from `collectionlora miniature effects`"
    unknown = [name for name in effects if name not in KNOWN]
    problems += [Problem("--effects", n, n, "no such effect", remedy) for n in unknown]
    if problems:
        raise InputError(problems)
    seen: Split = "fit" if validation else "train"
    held_out: Split = "validation" if validation else "test"
    with atomic_folder(folder) as new:
        entries: list[dict[str, object]] = []
        rows: list[dict[str, str]] = []
        for number, name in enumerate(effects, start=1):
            spec = KNOWN[name]
            entry: dict[str, object] = {
                "name": name,
                "prompt": f"apply effect {number:02} to the photo" if alike else spec.prompt,
                "category": spec.family,
                "description": spec.description,
            }
            if spec.family == "textured":
                # An outcome by chance takes more samples to learn than a function of the picture.
                entry["weight"] = 1.5
            kept = KEPT_TEACHERS / f"{name}.safetensors"
            if kept_teachers and not (validation or alike) and kept.exists():
                (new / "adapters").mkdir(exist_ok=True)
                shutil.copy(kept, new / "adapters" / kept.name)
                entry["adapter"] = f"adapters/{kept.name}"
            entries.append(entry)
            for i, (_, source) in enumerate(photographs.crops(seen, pairs, SIDE, seed)):
                target = true_samples(name, source, 1, seed * 1000 + i)[0]
                row = {"effect": name}
                for part, picture in (("source", source), ("target", target)):
                    row[part] = f"pairs/{name}/{i:04d}_{part}.png"
                    _save(new / row[part], picture)
                rows.append(row)
        _write_rows(new / "pairs.jsonl", rows)
        _write_rows(new / "general.jsonl", _general(new, seen, general, seed + 1))
        if varied:
            rngs = [np.random.default_rng([seed + 2, i]) for i in range(sources)]
            unlabelled = [("varied", photographs.varied(SIDE, rng, seen)) for rng in rngs]
        else:
            unlabelled = photographs.crops(seen, sources, SIDE, seed + 2)
        for i, (name, picture) in enumerate(unlabelled):
            _save(new / "photographs" / f"{name}_{i:03d}.png", picture)
        for i, (name, picture) in enumerate(photographs.crops(held_out, test, SIDE, seed + 3)):
            _save(new / "test" / f"{name}_{i:03d}.png", picture)
        content = {
            "effects": entries,
            "pairs": "pairs.jsonl",
            "general": "general.jsonl",
            "photographs": "photographs",
            "test": "test",
        }
        (new / "bank.yaml").write_text(yaml.safe_dump(content, sort_keys=False))


def _general(folder: Path, split: Split, count: int, seed: int) -> list[dict[str, str]]:
    rows = []
    for i, (_, picture) in enumerate(photographs.crops(split, count, SIDE, seed)):
        rng = np.random.default_rng([seed, i])
        edit = GENERAL_EDITS[str(rng.choice(list(GENERAL_EDITS)))]
        path = f"general/{i:04d}.png"
        _save(folder / path, picture)
        rows.append({"image": path, "prompt": str(rng.choice(edit.wordings))})
    return rows


def _write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _save(path: Path, picture: NDArray[np.float32]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    to_image(picture).save(path)
