"""The tracker: what the store holds, that reruns continue, and that a lost store loses nothing."""

import json
import math
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import tracking
from pipeline.tracking import Tracker


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store with MLflow's tables, made once: making them takes seconds."""
    folder = tmp_path_factory.mktemp("store")
    tracking.client(tracking.default_uri(folder)).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture
def output(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path)
    return tmp_path


def fill(tracker: Tracker, folder: Path) -> tuple[str, str]:
    """One parent with a teacher below it, a metric, a picture and a folder of artifacts."""
    (folder / "files").mkdir(exist_ok=True)
    (folder / "files" / "sepia.png").write_bytes(b"png")
    params = {"seed": 1, "distill": {"rounds": 5, "betas": (0.9, 0.999)}, "bank": "x" * 600}
    parent = tracker.parent("demo", "abc", params)
    child = tracker.child(parent, "teacher sepia", "teacher", "sepia", "abc")
    tracker.log_metrics(child, {"fidelity": 30.5, "sepia/fidelity_lo": 29.0}, step=7)
    tracker.log_images(child, [folder / "files" / "sepia.png"])
    tracker.log_artifact(child, folder / "files", "adapter")
    tracker.finish(child)
    tracker.finish(parent, "FAILED")
    return parent, child


def check(store: Any, experiment: str) -> None:
    """That a store holds what `fill` wrote, once."""
    runs = store.search_runs([store.get_experiment_by_name(experiment).experiment_id])
    assert len(runs) == 2
    parent, child = sorted(runs, key=lambda run: "effect" in run.data.tags)
    assert parent.info.run_name == "demo" and parent.info.status == "FAILED"
    assert parent.data.params == {
        "seed": "1",
        "distill.rounds": "5",
        "distill.betas": "[0.9, 0.999]",
        "bank": "x" * 500,
    }
    tags = child.data.tags
    assert tags["mlflow.parentRunId"] == parent.info.run_id and child.info.status == "FINISHED"
    assert (tags["role"], tags["effect"], tags["recipe_hash"]) == ("teacher", "sepia", "abc")
    assert child.data.metrics == {"fidelity": 30.5, "sepia/fidelity_lo": 29.0}
    assert tracking.history(store, child.info.run_id, "fidelity") == [(7, 30.5)]
    names = [a.path for folder in ("images", "adapter") for a in list_of(store, child, folder)]
    assert names == ["images/sepia.png", "adapter/sepia.png"]


def list_of(store: Any, run: Any, folder: str) -> Any:
    return store.list_artifacts(run.info.run_id, folder)


def test_a_run_is_recorded_and_a_rerun_continues_it(output: Path) -> None:
    tracker = Tracker.open(None, "demo", output)
    ids = fill(tracker, output)
    store = tracking.client(tracking.default_uri(output))
    check(store, "demo")
    assert (output / "mlartifacts" / ids[1] / "artifacts/images/sepia.png").exists()
    assert not list(output.glob("*.jsonl"))
    again = Tracker.open(None, "demo", output)
    assert again.parent("renamed", "abc", {"seed": 2, "more": "x"}) == ids[0]
    run = store.get_run(ids[0])
    # Params are written once; what changed is kept beside them.
    assert run.info.status == "RUNNING" and run.data.params["seed"] == "1"
    assert run.data.params["more"] == "x" and run.data.tags["rerun.seed"] == "2"
    assert fill(again, output) == ids
    assert again.parent("demo", "other", {}) != ids[0]
    assert again.child(ids[0], "teacher sepia", "teacher", "sepia", "other") != ids[1]
    assert again.child(ids[0], "it's", "baseline", None, "abc") != ids[1]
    assert not list(output.glob("*.jsonl"))


def test_metrics_of_any_number_and_history_of_a_resumed_run(output: Path) -> None:
    tracker = Tracker.open(None, "demo", output)
    run = tracker.parent("demo", "abc", {f"k{i}": i for i in range(130)})
    tracker.log_metrics(run, {f"m{i}": i for i in range(2300)})
    for step, value in [(0, 1.0), (1, 2.0), (2, 3.0), (1, 20.0), (2, 30.0), (3, math.nan)]:
        tracker.log_metrics(run, {"loss": value}, step)
        time.sleep(0.002)
    store = tracking.client(tracking.default_uri(output))
    assert len(store.get_run(run).data.metrics) == 2301
    assert len(store.get_run(run).data.params) == 130
    history = tracking.history(store, run, "loss")
    assert history[:3] == [(0, 1.0), (1, 20.0), (2, 30.0)] and math.isnan(history[3][1])
    assert not list(output.glob("*.jsonl"))


def test_runs_are_read_without_parents_latest_first(output: Path) -> None:
    tracker = Tracker.open(None, "demo", output)
    parent, child = fill(tracker, output)
    time.sleep(0.002)
    student = tracker.child(parent, "student", "student", None, "abc")
    store = tracking.client(tracking.default_uri(output))
    ids = tracking.experiments(store)
    rows = tracking.runs(store, [ids["demo"]])
    assert [row.run_id for row in rows] == [student, child]
    assert (rows[0].effect, rows[1].effect, rows[1].role) == ("", "sepia", "teacher")
    assert rows[1].metrics["fidelity"] == 30.5


def test_a_refused_record_is_set_aside_and_holds_up_nothing(
    output: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = Tracker.open(None, "demo", output)
    run = tracker.parent("demo", "abc", {})
    tracker.log_metrics(run, {"no:such?name": 1.0})
    tracker.log_artifact(run, output / "absent.png")
    tracker.log_metrics(run, {"loss": 1.0})
    store = tracking.client(tracking.default_uri(output))
    assert store.get_run(run).data.metrics == {"loss": 1.0}
    assert not (output / "mlflow_pending.jsonl").exists()
    refused = [json.loads(x) for x in (output / "mlflow_refused.jsonl").read_text().splitlines()]
    assert ["no:such?name" in refused[0]["reason"], refused[1]["call"]] == [True, "artifact"]
    assert capsys.readouterr().err.count("warning: MLflow refused a record") == 1


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_lost_tracker_loses_no_run_and_no_record(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    address = f"http://me:secret@127.0.0.1:{closed_port()}"
    before = time.time()
    away = Tracker.open(address, "demo", output)
    parent, child = fill(away, output)
    assert time.time() - before < 5
    assert parent.startswith("pending-") and child != parent
    journal = output / "mlflow_pending.jsonl"
    text = capsys.readouterr().err
    assert text.count("warning: ") == 1 and str(journal) in text and "Remedy" in text
    assert "secret" not in text
    calls = [json.loads(line)["call"] for line in journal.read_text().splitlines()]
    assert calls == ["open", "open", "metrics", "artifact", "artifact", "finish", "finish"]
    # A crash tore the last line; and the store that answers next time is another one.
    with journal.open("a") as file:
        file.write('{"call": "open", "run": "pend')
    back = Tracker.open(None, "demo", output)
    assert not journal.exists()
    check(tracking.client(tracking.default_uri(output)), "demo")
    assert not back.parent("demo", "abc", {}).startswith("pending-")
    assert "torn line" in (output / "mlflow_refused.jsonl").read_text()


def test_a_store_that_comes_back_in_the_middle_gets_all_in_order(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "_RETRY_SECONDS", 0.0)
    tracker = Tracker.open(None, "demo", output)
    perform, away = Tracker._perform, {None, *range(6)}

    def sometimes(self: Tracker, record: dict[str, Any]) -> None:
        if record.get("step") in away:
            raise ConnectionError("away")
        perform(self, record)

    monkeypatch.setattr(Tracker, "_perform", sometimes)
    run = tracker.parent("demo", "abc", {})
    monkeypatch.setattr(tracker, "_retry_at", math.inf)
    for step in range(5):
        tracker.log_metrics(run, {"loss": float(step)}, step)
    # It answers, and goes away again in the middle of the replay: the rest waits on.
    monkeypatch.setattr(tracker, "_retry_at", 0.0)
    away.intersection_update({3})
    tracker.log_metrics(run, {"loss": 5.0}, 5)
    journal = output / "mlflow_pending.jsonl"
    waiting = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [record["step"] for record in waiting] == [3, 4, 5]
    # They name the run by its id now, so that another process can send them.
    assert not any(record["run"].startswith("pending-") for record in waiting)
    monkeypatch.setattr(Tracker, "_perform", perform)
    Tracker.open(None, "demo", output)
    store = tracking.client(tracking.default_uri(output))
    real = tracker.parent("demo", "abc", {})
    assert tracking.history(store, real, "loss") == [(s, float(s)) for s in range(6)]
    assert not journal.exists() and capsys.readouterr().err.count("warning") == 1


def test_importing_the_tracker_does_not_import_mlflow() -> None:
    code = "import sys, pipeline.tracking, pipeline.compare; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.fixture
def server(output: Path) -> Iterator[str]:
    """A real MLflow server on loopback, over the SQLite store."""
    port = closed_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
    command += ["--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", tracking.default_uri(output)]
    command += ["--artifacts-destination", str(output / "served")]
    with (output / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, cwd=output, env=os.environ, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(address, process)
        yield address
    finally:
        os.killpg(process.pid, 15)
        process.wait(timeout=20)


def wait_for(address: str, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.time() + 120
    while time.time() < deadline:
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"{address}/health", timeout=2).close()
        except OSError:
            time.sleep(0.3)
        else:
            return
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_a_real_server(output: Path, server: str) -> None:
    # First to nobody, so that what waited is replayed over HTTP, artifacts included.
    fill(Tracker.open(f"http://127.0.0.1:{closed_port()}", "demo", output), output)
    tracker = Tracker.open(server, "demo", output)
    store = tracking.client(server)
    check(store, "demo")
    _, child = fill(tracker, output)
    check(store, "demo")
    assert store.get_run(child).info.artifact_uri.startswith("mlflow-artifacts:")
    assert list((output / "served").rglob("sepia.png"))
    assert not list(output.glob("*.jsonl"))
