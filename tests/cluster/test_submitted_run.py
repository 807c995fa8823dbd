"""`ray job submit` for real: a head with a token, MLflow on HTTP, artifacts in S3; stop, go on."""

import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from actors.rollout_worker import rollout_worker
from actors.student_worker import student_trainer
from pipeline import tracking
from pipeline.bank import load_bank
from pipeline.config import load_recipe
from pipeline.distill.single_process import distill_in_one_process
from pipeline.places import Places
from pipeline.prompting import make_prompts
from pipeline.stages.distill import History, arguments_of
from pipeline.stages.encode import collect
from pipeline.stages.student import run_key_of, student_file, student_weights
from pipeline.stages.targets import plan_targets
from tests.cluster.test_manifests import ROOT
from tests.s3_server import BUCKET, keys_below, run_environment, s3_server
from tests.services import BIN, Head, MlflowServer, mlflow_server, ray_head
from tests.tiny_run import EFFECTS, write_inputs, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
ROUNDS, CHECKPOINT = 40, 5


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("s3") / "log.txt") as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def mlflow(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    folder = tmp_path_factory.mktemp("mlflow")
    environment = run_environment(endpoint, folder / "none")
    with mlflow_server(folder, f"s3://{BUCKET}/mlflow", environment) as server:
        yield server


def submit(environment: dict[str, str], *arguments: str) -> "subprocess.Popen[str]":
    command = [str(BIN / "ray"), "job", "submit", "--working-dir", ".", *arguments]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def workers_of(head: Head) -> list[str]:
    """Titles of this cluster's processes that work for a run."""
    titles = []
    for process in head.processes():
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if any(part in title for part in ("Teacher", "TrainWorker", "-m pipeline run")):
                titles.append(title)
    return titles


def test_submitted_stopped_submitted_again_and_compared_over_http(
    endpoint: str, mlflow: MlflowServer, tmp_path: Path
) -> None:
    began = time.monotonic()
    inputs = write_inputs(tmp_path / "inputs")
    changes = {
        "distill": {"rounds": ROUNDS, "checkpoint_every": CHECKPOINT},
        "tracking": {"uri": mlflow.uri},
    }
    file = write_recipe(tmp_path / "tiny.yaml", inputs, str(tmp_path / "run"), changes)
    recipe, places = load_recipe(file), Places(tmp_path / "run")
    history = History(places.history)
    # The cluster's own processes get no S3 keys: MLflow's server passes artifacts on.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    run = ("--", "python", "-m", "pipeline", "run", str(file))
    with ray_head(environment, "--num-cpus=4", log=tmp_path / "head.log") as head:
        client = head.environment | {"RAY_ADDRESS": head.dashboard}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{head.dashboard}/api/jobs/", timeout=30)

        first = submit(client, "--submission-id", "first", *run)
        while len(history.load()) < CHECKPOINT + 2:
            assert first.poll() is None, first.communicate()[0][-3000:]
            time.sleep(0.2)
        stop = [str(BIN / "ray"), "job", "stop", "first"]
        subprocess.run(stop, env=client, check=True, capture_output=True, timeout=120)
        text, _ = first.communicate(timeout=120)
        done = len(history.load())
        print(f"{time.monotonic() - began:.0f} s: stopped after round {done}")
        assert "distill" in text and done < ROUNDS
        deadline = time.monotonic() + 60
        while (left := workers_of(head)) and time.monotonic() < deadline:
            time.sleep(0.5)
        assert left == []
        lines = len(places.history.read_text().splitlines())

        again = submit(client, "--submission-id", "again", *run)
        text, _ = again.communicate(timeout=600)
        assert again.returncode == 0, text[-3000:]
        print(f"{time.monotonic() - began:.0f} s: run to its end")
    # It went on from a checkpoint: of the second job's rounds the first is not round 0.
    second = places.history.read_text().splitlines()[lines:]
    assert 0 < len(second) <= ROUNDS - CHECKPOINT

    loaded = load_bank(recipe.bank)
    collection, _ = collect(recipe, loaded, make_prompts(loaded.effects, recipe.prompts, 0))
    manifest = plan_targets(recipe, collection, places.teachers)[0]
    student, teachers = arguments_of(recipe, manifest, places.stores, "x")
    trainer = student_trainer(student)
    distill_in_one_process(trainer, rollout_worker(teachers), range(ROUNDS))
    assert trainer.average is not None
    weights = student_weights(student_file(places, run_key_of(recipe, manifest)))
    assert all((weights[key] == value).all() for key, value in trainer.average.items())

    compared_over_http(mlflow, endpoint, tmp_path)
    print(f"{time.monotonic() - began:.0f} s in all")


def compared_over_http(mlflow: MlflowServer, endpoint: str, folder: Path) -> None:
    """Teachers and student side by side, with artifacts that lie in S3."""
    from pipeline.compare import compare

    table = compare(mlflow.uri, None, folder / "compare")
    assert all(effect in table for effect in EFFECTS) and "student" in table
    store = tracking.client(mlflow.uri)
    rows = tracking.runs(store, list(tracking.experiments(store).values()))
    by_role = {row.role: row for row in rows}
    assert by_role.keys() >= {"teacher", "student"}
    assert len([row for row in rows if row.role == "teacher"]) == len(EFFECTS)
    student, teacher = by_role["student"], by_role["teacher"]
    shared = f"{teacher.effect}/fidelity"
    assert "fidelity" in teacher.metrics and {"fidelity", shared} <= student.metrics.keys()
    steps = [step for step, _ in tracking.history(store, student.run_id, "train/loss_fake")]
    assert steps == [0, 10, 20, 30, ROUNDS - 1]
    got = store.download_artifacts(student.run_id, f"images/{EFFECTS[0]}.png", str(folder))
    stored = keys_below(endpoint, "mlflow/")
    assert Path(got).read_bytes() in stored.values()
    for effect in EFFECTS:
        assert any(key.endswith(f"images/{effect}.png") for key in stored)
    assert any(key.endswith("student/pytorch_lora_weights.safetensors") for key in stored)
