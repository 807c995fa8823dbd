"""Whole runs while what they write to dies under them: MLflow's server, the object store."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import tracking
from pipeline.places import Places
from pipeline.stages.distill import History
from pipeline.storage import sha256_file
from tests.s3_proxy import s3_proxy
from tests.s3_server import BUCKET, keys_below, put_folder, run_environment, s3_server
from tests.services import mlflow_server
from tests.tiny_run import (
    local_environment,
    pipeline,
    undisturbed_student,
    write_inputs,
    write_recipe,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
ROUNDS = 20
DISTILL = {"rounds": ROUNDS, "checkpoint_every": 5}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def undisturbed(inputs: Path) -> str:
    return undisturbed_student(inputs, DISTILL)


def test_a_run_outlives_mlflow_and_its_records_catch_up(
    inputs: Path, undisturbed: str, tmp_path: Path
) -> None:
    """Killed in mid-run, started again after it: nothing is lost, in the log or on record."""
    environment = local_environment()
    with mlflow_server(tmp_path / "server", str(tmp_path / "artifacts"), environment) as server:
        changes = {"distill": DISTILL, "tracking": {"uri": server.uri}}
        recipe = write_recipe(tmp_path / "tiny.yaml", inputs, str(tmp_path / "run"), changes)
        history = History(Places(tmp_path / "run").history)
        command = [sys.executable, "-m", "pipeline", "run", str(recipe)]
        run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while len(history.load()) < 3:
            assert run.poll() is None, run.communicate()[1][-3000:]
            time.sleep(0.1)
        server.kill()
        _, errors = run.communicate(timeout=900)
        assert run.returncode == 0, errors[-3000:]
        assert f"MLflow at {server.uri} did not take a record" in errors
        assert "Remedy: start the server" in errors
        (student,) = (tmp_path / "run" / "training").glob("*/student.safetensors")
        assert sha256_file(student) == undisturbed
        journal = tmp_path / "run" / "mlflow_pending.jsonl"
        waiting = journal.read_text().count("\n")
        assert waiting > 5

        server.start()
        again = pipeline(environment, "run", recipe)
        assert again.returncode == 0, again.stderr[-3000:]
        print(f"{waiting} records waited in the journal")
        assert not journal.exists() and not (tmp_path / "run" / "mlflow_refused.jsonl").exists()
        store = tracking.client(server.uri)
        rows = tracking.runs(store, list(tracking.experiments(store).values()))
        (row,) = (row for row in rows if row.role == "student")
        steps = [step for step, _ in tracking.history(store, row.run_id, "train/loss_fake")]
        assert steps == [0, 10, ROUNDS - 1]
        assert "fidelity" in row.metrics
        assert store.get_run(row.run_id).info.status == "FINISHED"


@pytest.fixture
def s3(inputs: Path, tmp_path: Path) -> Iterator[str]:
    with s3_server(tmp_path / "log.txt") as endpoint:
        put_folder(endpoint, inputs / "bank", "bank")
        yield endpoint


def student_in(endpoint: str) -> str:
    found = keys_below(endpoint, "run/training/")
    (name,) = (k for k in found if k.endswith("/student.safetensors") and k.count("/") == 1)
    return hashlib.sha256(found[name]).hexdigest()


def test_a_run_on_a_store_that_refuses_dawdles_cuts_and_is_gone_for_a_while(
    inputs: Path, undisturbed: str, s3: str, tmp_path: Path
) -> None:
    """One answer in twenty goes wrong, and for ten seconds in mid-run each: the same file."""
    places = {"bank": f"s3://{BUCKET}/bank", "distill": DISTILL}
    recipe = write_recipe(tmp_path / "s3.yaml", inputs, f"s3://{BUCKET}/run", places)
    chances = {"refuse": 0.02, "slow": 0.01, "cut": 0.01, "flip": 0.005}
    with s3_proxy(s3, chances) as (endpoint, proxy):

        def outage() -> None:
            while not any("/checkpoint_" in key for key in keys_below(s3, "run/training/")):
                time.sleep(1)
            proxy.chances = {"refuse": 1.0}
            time.sleep(10)
            proxy.chances = chances

        away = threading.Thread(target=outage, daemon=True)
        away.start()
        done = pipeline(
            run_environment(endpoint, tmp_path / "node"), "distill", recipe, timeout=900
        )
        print(dict(proxy.done))
        assert done.returncode == 0, done.stderr[-3000:]
        assert not away.is_alive()
    assert proxy.done["refuse"] and proxy.done["slow"]
    assert student_in(s3) == undisturbed


def test_a_run_whose_store_died_says_so_and_goes_on_when_it_is_back(
    inputs: Path, undisturbed: str, s3: str, tmp_path: Path
) -> None:
    """Dead in mid-run: the store is named within a minute; afterwards the same command goes on."""
    places = {"bank": f"s3://{BUCKET}/bank", "distill": DISTILL}
    recipe = write_recipe(tmp_path / "s3.yaml", inputs, f"s3://{BUCKET}/run", places)
    with s3_proxy(s3, {}) as (endpoint, proxy):
        environment = run_environment(endpoint, tmp_path / "node")
        command = [sys.executable, "-m", "pipeline", "distill", str(recipe)]
        run = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        while not any("/checkpoint_" in key for key in keys_below(s3, "run/training/")):
            assert run.poll() is None, run.communicate()[1][-3000:]
            time.sleep(0.5)
        proxy.chances, died = {"refuse": 1.0}, time.monotonic()
        assert run.stderr is not None
        errors, named = "", None
        for line in run.stderr:
            errors += line
            if named is None and f"the object store at {endpoint}" in line:
                named = time.monotonic() - died
        assert run.wait(60) == 1
        last = errors.rpartition("error: ")[2]
        print(f"named {named} s, ended {time.monotonic() - died:.0f} s after it died: {last}")
        assert named is not None and named < 60
        assert endpoint in last and "goes on from here" in last
        proxy.chances = {}
        again = pipeline(environment, "distill", recipe)
        assert again.returncode == 0, again.stderr[-3000:]
    assert student_in(s3) == undisturbed
    rounds = [json.loads(r)["round"] for r in keys_below(s3, "run/")["history.jsonl"].splitlines()]
    assert set(rounds) == set(range(ROUNDS))
