"""A new user's way by README's commands alone: from a folder of LoRAs to a student and a page."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.newcomer import BASE, BLANK, EFFECTS, write_newcomer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
MOST_COMMANDS = 8
# Only so that it takes minutes: the recipe itself stays as `init` wrote it.
TINY = (
    "targets.sources=2",
    "targets.steps=2",
    "student.lora={rank: 2, alpha: 2}",
    "distill.rounds=2",
    "distill.batch=2",
    "distill.fake_updates=1",
    "distill.ta_fm_batch=2",
    "distill.checkpoint_every=2",
    "evaluate.photographs=1",
    "evaluate.bootstrap=100",
    "cluster.encoder_pool={min: 1, max: 1}",
    "cluster.teacher_pool={min: 1, max: 1}",
)


def test_from_init_to_an_exported_student_and_a_page(tmp_path: Path) -> None:
    write_newcomer(tmp_path / "mine", pairs=3, unlabelled=6)
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    commands = 0

    def collectionlora(*arguments: str) -> str:
        nonlocal commands
        commands += 1
        command = [sys.executable, "-m", "pipeline", *arguments]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200
        )
        assert done.returncode == 0, (arguments, done.stderr[-3000:])
        return done.stdout

    sets = [word for change in TINY for word in ("--set", change)]
    said = collectionlora("init", "mine", "--base", str(BASE.resolve()))
    # It says itself what comes next.
    for line in ("validate mine/recipe.yaml", "run mine/recipe.yaml", "compare --uri sqlite:"):
        assert f"collectionlora {line}" in said
    bank = tmp_path / "mine" / "bank.yaml"
    bank.write_text(bank.read_text().replace("prompt:   # BLANK", f"prompt: {BLANK}   #"))
    assert "5 effects" in collectionlora("validate", "mine/recipe.yaml")
    assert "distil" in collectionlora("run", "mine/recipe.yaml", "--dry-run", *sets)
    made = collectionlora("run", "mine/recipe.yaml", *sets)
    student = tmp_path / "runs" / "mine" / "student"
    assert "runs/mine/student" in made
    assert (student / "pytorch_lora_weights.safetensors").is_file()
    out = tmp_path / "runs" / "mine" / "compare"
    collectionlora("compare", "--uri", "sqlite:///runs/mine/mlflow.db", "--out", str(out))
    assert (out / "compare.html").stat().st_size > 10_000
    listed = collectionlora("edit", "--adapter", "runs/mine/student", "--list")
    assert all(name in listed for name in EFFECTS)
    picture = str(next((tmp_path / "mine" / "photos").iterdir()))
    ask = ["edit", "--adapter", "runs/mine/student", "--effect", "snow", picture]
    collectionlora(*ask, "--out", "runs/edits")
    assert (tmp_path / "runs" / "edits" / "grid.png").is_file()
    assert commands <= MOST_COMMANDS
