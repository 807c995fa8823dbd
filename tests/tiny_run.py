"""A whole run of seconds: a bank of two effects, a random model, a recipe, caches to share."""

import json
from pathlib import Path

import yaml
from PIL import Image

from pipeline.bank import load_bank
from pipeline.config import Recipe, load_recipe
from pipeline.controller import run
from pipeline.miniature.bank import write_bank
from tests.tiny_model import write_tiny_model


def write_tiny_bank(folder: Path) -> Path:
    """A two-effect bank and a random model, with encodings and targets made once.

    Of three buckets: squares, a wide general row, and an edit of two pictures.
    """
    write_tiny_model(folder / "model")
    write_bank(folder / "bank", ["sepia", "snow"], pairs=2, general=3, sources=1, test=1)
    rows = folder / "bank" / "general.jsonl"
    first, second, third = (json.loads(line) for line in rows.read_text().splitlines())
    with Image.open(folder / "bank" / second["image"]) as picture:
        picture.resize((90, 60)).save(folder / "bank" / "wide.png")
    second["image"] = "wide.png"
    third["image"] = [first["image"], third["image"]]
    rows.write_text("".join(json.dumps(row) + "\n" for row in (first, second, third)))
    run(recipe_in(folder, "first"), load_bank(folder / "bank"), until="targets")
    return folder


def recipe_file(folder: Path, output: str, **distill: object) -> Path:
    content = {
        "name": "tiny",
        "bank": str(folder / "bank"),
        "output": str(folder / output),
        "model": {"path": str(folder / "model")},
        "teach": {"lora": {"rank": 2, "alpha": 4.0}, "steps": 2, "learning_rate": 1e-3},
        "targets": {"sources": 2, "steps": 2, "guidance": 1.5, "batch": 4},
        "student": {"steps": 4, "lora": {"rank": 2, "alpha": 2.0}},
        "distill": {
            "rounds": 6,
            "batch": 2,
            "fake_updates": 2,
            "learning_rate": 1e-3,
            "fake_learning_rate": 1e-3,
            "ema": 0.5,
            "guidance": 1.5,
            "ta_fm_batch": 3,
            "checkpoint_every": 3,
        }
        | distill,
        "evaluate": {"truth": "miniature", "photographs": 1},
    }
    path = folder / f"{output}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def recipe_in(folder: Path, output: str, *overrides: str, **distill: object) -> Recipe:
    return load_recipe(recipe_file(folder, output, **distill), overrides)


def share_caches(folder: Path, output: str) -> None:
    """Give a new output the first run's caches, so that only the distillation is left to do."""
    (folder / output).mkdir()
    (folder / output / "cache").symlink_to(folder / "first" / "cache")
