"""Whole runs whose disk fills up, or whose files are damaged between two attempts."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.places import Places
from pipeline.stages.distill import History
from pipeline.storage import sha256_file
from tests.cluster.full_disk import FULL
from tests.tiny_run import (
    local_environment,
    pipeline,
    undisturbed_student,
    write_inputs,
    write_recipe,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROUNDS, CHECKPOINT = 30, 5
DISTILL = {"rounds": ROUNDS, "checkpoint_every": CHECKPOINT}
SEED = int(os.environ.get("FAULTS_SEED", time.time()))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> str:
    return undisturbed_student(inputs, DISTILL)


def test_a_full_disk_is_named_within_a_minute_and_the_same_command_goes_on(
    inputs: Path, undisturbed: str, tmp_path: Path
) -> None:
    """A real small disk (tmpfs in a mount namespace), filled by somebody else in mid-run."""
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"]).returncode:
        pytest.skip("needs a kernel that gives users mount namespaces")
    output = tmp_path / "small"
    recipe = write_recipe(tmp_path / "tiny.yaml", inputs, str(output), {"distill": DISTILL})
    command = ["unshare", "-rm", sys.executable, "-m", "tests.cluster.full_disk"]
    done = subprocess.run(
        [*command, str(recipe), str(output), "8"],
        env=local_environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(f"named {found['named']} s, ended {found['ended']:.0f} s after it was full")
    assert found["code"] == 1 and found["rounds"] < ROUNDS
    assert found["named"] < 60, found["errors"]
    last = found["errors"].rpartition("error: ")[2]
    assert FULL in last and "goes on from here" in last
    assert found["code_again"] == 0, found["errors_again"]
    assert found["sha256"] == [undisturbed]


def test_files_that_are_damaged_between_two_attempts_are_made_again(
    inputs: Path, undisturbed: str, tmp_path: Path
) -> None:
    """The driver is killed; a checkpoint, an encoding, a target and a teacher are then damaged."""
    output = tmp_path / "run"
    recipe = write_recipe(tmp_path / "tiny.yaml", inputs, str(output), {"distill": DISTILL})
    places = Places(output)
    history = History(places.history)
    command = [sys.executable, "-m", "pipeline", "distill", str(recipe)]
    run = subprocess.Popen(command, env=local_environment(), stderr=subprocess.PIPE, text=True)
    while len(history.load()) < 2 * CHECKPOINT + 2:
        assert run.poll() is None, run.communicate()[1][-3000:]
        time.sleep(0.1)
    run.kill()
    run.communicate()
    rng = random.Random(SEED)
    newest = max(places.training.glob("*/checkpoint_*/student"))
    for folder in (newest, places.encodings, places.targets, places.teachers):
        kinds = (".safetensors", ".parquet")
        path = rng.choice(sorted(p for p in folder.rglob("*") if p.suffix in kinds))
        _damage(path, rng)
        print(f"seed {SEED}: damaged {path.relative_to(output)}")
    again = pipeline(local_environment(), "distill", recipe)
    assert again.returncode == 0, again.stderr[-3000:]
    assert "damaged checkpoint" in again.stdout + again.stderr
    (student,) = places.training.glob("*/student.safetensors")
    assert sha256_file(student) == undisturbed


def _damage(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content))
    if rng.random() < 0.5:
        content = content[:at]
    else:
        content[at] ^= 1 << rng.randrange(8)
    path.write_bytes(content)
