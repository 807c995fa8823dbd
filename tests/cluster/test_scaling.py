"""Teacher nodes from none to three and back, with Ray's own autoscaler and real raylets."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.storage import sha256_file
from tests.services import Head, ray_head
from tests.tiny_run import pipeline, recipe_file, share_caches, write_tiny_bank

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
POOL = "cluster.teacher_pool={min: 3, max: 3, num_cpus: 1, resources: {teacher: 1}}"
GROUP = "cluster.student_group={num_cpus: 1, resources: {student: 1}}"


def teacher_nodes(head: Head) -> int:
    """Raylets of nodes that the autoscaler started."""
    found = 0
    for process in head.processes():
        with suppress(psutil.Error):
            kind = process.environ().get("RAY_NODE_TYPE_NAME")
            found += process.name() == "raylet" and kind == "teacher"
    return found


def test_teacher_nodes_come_and_go_and_the_student_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "inputs").mkdir()
    folder, environment = write_tiny_bank(tmp_path / "inputs"), dict(os.environ)
    shas, counts = {}, [0]
    for output in ("alone", "scaled"):
        share_caches(folder, output)
        recipe = recipe_file(folder, output, rounds=60, checkpoint_every=20, lag=1)
        arguments = ("distill", str(recipe), "--set", GROUP, "--set")
        if output == "alone":
            one = POOL.replace("3", "1")
            done = pipeline(environment, *arguments, one)
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            flags = ("--num-cpus=3", '--resources={"student": 1}')
            log = tmp_path / "head.log"
            with ray_head(environment, *flags, log=log, teachers={"CPU": 1, "teacher": 1}) as head:
                assert teacher_nodes(head) == 0
                command = [sys.executable, "-m", "pipeline", *arguments, POOL]
                joined = head.environment | {"RAY_ADDRESS": head.gcs}
                began = time.monotonic()
                run = subprocess.Popen(command, env=joined, stderr=subprocess.PIPE, text=True)
                while run.poll() is None and time.monotonic() < began + 900:
                    counts.append(teacher_nodes(head))
                    time.sleep(1)
                _, errors = run.communicate(timeout=60)
                assert run.returncode == 0, errors[-3000:]
                ended = time.monotonic()
                while teacher_nodes(head) and time.monotonic() < ended + 180:
                    time.sleep(1)
                counts.append(teacher_nodes(head))
                print(f"nodes {max(counts)}; run {ended - began:.0f} s", end="; ")
                print(f"none left {time.monotonic() - ended:.0f} s after it")
        (student,) = (folder / output / "training").glob("*/student.safetensors")
        shas[output] = sha256_file(student)
    assert max(counts) == 3 and counts[-1] == 0
    assert shas["alone"] == shas["scaled"]
