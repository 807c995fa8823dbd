"""The chaos command itself: thirty kills at random, and the same student at the end."""

import json
import os
import time
from pathlib import Path

import pytest

from tests.tiny_run import local_environment, pipeline, recipe_file, write_inputs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
SEED = int(os.environ.get("FAULTS_SEED", time.time()))
# Thirty pauses of 10 to 30 s.
MINUTES, EVERY, KILLS = 11, 20, 30
POOL = "cluster.teacher_pool={min: 2, max: 2, num_cpus: 0.5}"


def test_thirty_random_kills_leave_the_student_as_it_was(tmp_path: Path) -> None:
    write_inputs(tmp_path)
    recipe = recipe_file(tmp_path, "run", rounds=120, checkpoint_every=5, lag=1)
    given = ("--minutes", MINUTES, "--every", EVERY, "--seed", SEED, "--set", POOL)
    done = pipeline(local_environment(), "chaos", recipe, *map(str, given), timeout=3000)
    print(done.stdout[-1500:])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads((tmp_path / "run" / "chaos" / "chaos.json").read_text())
    kills = [kill for outcome in report["disturbed"] for kill in outcome["kills"]]
    assert report["same"]
    assert len(kills) >= KILLS and len({kill["kind"] for kill in kills}) >= 4
