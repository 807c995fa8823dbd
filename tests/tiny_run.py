"""A whole run that is too small to mean anything, as files and a command."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from pipeline.bank import load_bank
from pipeline.config import Recipe, load_recipe
from pipeline.controller import run
from pipeline.miniature.bank import write_bank
from pipeline.storage import sha256_file
from tests.tiny_model import write_tiny_model

EFFECTS = ["sepia", "snow"]


def write_inputs(folder: Path) -> Path:
    """A random model and a bank of two effects, one of which brings its adapter."""
    write_tiny_model(folder / "model")
    write_bank(folder / "bank", EFFECTS, pairs=2, general=3, sources=1, test=1)
    return folder


def write_recipe(
    path: Path, inputs: Path, output: str, changes: Mapping[str, Mapping[str, Any] | str] = {}
) -> Path:
    """A recipe of six rounds; ``changes`` are whole values, or fields of a section."""
    content: dict[str, Any] = {
        "name": "tiny",
        "bank": str(inputs / "bank"),
        "output": output,
        "model": {"path": str(inputs / "model")},
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
        },
        "evaluate": {"truth": "miniature", "photographs": 1, "bootstrap": 100},
    }
    for key, value in changes.items():
        content[key] = value if isinstance(value, str) else content.get(key, {}) | dict(value)
    path.write_text(yaml.safe_dump(content))
    return path


def write_tiny_bank(folder: Path) -> Path:
    """The same inputs with rows of three buckets, and an output "first" with all caches made.

    Squares, a wide general row, and an edit of two pictures.
    """
    write_inputs(folder)
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
    """The recipe of an output beside the inputs."""
    changes = {"distill": distill}
    return write_recipe(folder / f"{output}.yaml", folder, str(folder / output), changes)


def recipe_in(folder: Path, output: str, *overrides: str, **distill: object) -> Recipe:
    return load_recipe(recipe_file(folder, output, **distill), overrides)


def share_caches(folder: Path, output: str) -> None:
    """Give a new output the first run's caches, so that only the distillation is left to do."""
    (folder / output).mkdir()
    (folder / output / "cache").symlink_to(folder / "first" / "cache")


def pipeline(
    environment: Mapping[str, str], *arguments: str | Path, timeout: float = 600
) -> "subprocess.CompletedProcess[str]":
    """A command of the pipeline in a process of its own."""
    command = [sys.executable, "-m", "pipeline", *map(str, arguments)]
    return subprocess.run(
        command, env=dict(environment), capture_output=True, text=True, timeout=timeout
    )


def local_environment() -> dict[str, str]:
    """For a run on a Ray of its own."""
    return {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"OMP_NUM_THREADS": "1"}


def undisturbed_student(inputs: Path, distill: Mapping[str, object]) -> str:
    """The sha256 of the student of a run on a local disk that nothing happens to."""
    changes = {"distill": dict(distill)}
    recipe = write_recipe(inputs / "calm.yaml", inputs, str(inputs / "calm"), changes)
    done = pipeline(local_environment(), "distill", recipe)
    assert done.returncode == 0, done.stderr[-3000:]
    (student,) = (inputs / "calm" / "training").glob("*/student.safetensors")
    return sha256_file(student)
