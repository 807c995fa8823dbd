"""How a run stands, read from files alone: rounds, rates, ETA, and whether it lives."""

import json
from pathlib import Path

import pytest
import torch

from pipeline import object_store
from pipeline.cli import main
from pipeline.config import Recipe, vary
from pipeline.places import Places
from pipeline.problems import InputError
from pipeline.progress import Reporter, progress_file, read_progress
from pipeline.stages.distill import History
from pipeline.status import SILENT_SECONDS, describe, read_status
from pipeline.storage import write_atomic
from pipeline.tensor_store import write_part
from tests.s3_server import BUCKET, s3_server, settings

RECIPE = Recipe.model_validate({"name": "tiny", "bank": "b", "output": "o"})


def row(round_index: int, wait: float = 0.1, update: float = 0.3) -> dict[str, float]:
    return {
        "round": float(round_index),
        "seconds_wait": wait,
        "seconds_update": update,
        "loss_fake": 0.5,
        "policy_lag": 1.0,
        "teacher_busy_share": 0.7,
    }


def test_it_says_the_groups_size_and_of_which_range(tmp_path: Path) -> None:
    places = Places(tmp_path)
    elastic = vary(RECIPE, {"cluster.student_group.workers": {"min": 1, "max": 4}})
    for recipe, says in ((RECIPE, "3 workers\n"), (elastic, "3 workers of 1 to 4\n")):
        with Reporter(recipe, places) as reporter:
            reporter.stage("distill", 5000, 0)
            write_history(places, range(3))
            with places.history.open("a") as file:
                file.write(json.dumps(row(3) | {"workers": 3.0}) + "\n")
            assert f"student   {says}" in describe(read_status(tmp_path))
            # As runs before had it.
            write_history(places, range(5))
            assert "student   " not in describe(read_status(tmp_path))


def write_history(places: Places, rounds: range) -> None:
    places.history.parent.mkdir(parents=True, exist_ok=True)
    places.history.write_text("".join(json.dumps(row(r)) + "\n" for r in rounds))


def snapshot(places: Places, round_index: int) -> None:
    folder = places.training / "key"
    folder.mkdir(parents=True)
    result = {"metrics": {"round": round_index}, "checkpoint_dir_name": "c"}
    text = json.dumps({"latest_checkpoint_result": result})
    (folder / "checkpoint_manager_snapshot.json").write_text(text)


def test_a_running_distillation_from_its_files(tmp_path: Path) -> None:
    places = Places(tmp_path)
    with Reporter(RECIPE, places) as reporter:
        reporter.stage("distill", 5000, 0)
        write_history(places, range(1000))
        snapshot(places, 900)
        status = read_status(tmp_path)
        assert (status.state, status.stage, status.done, status.total) == (
            "running",
            "distill",
            1000,
            5000,
        )
        # 4000 rounds of 0.4 s; a quarter of that is waiting.
        assert status.eta_seconds == pytest.approx(1600.0)
        assert status.rounds_per_second == pytest.approx(2.5)
        assert status.student_wait_share == pytest.approx(0.25)
        assert status.teacher_busy_share == pytest.approx(0.7)
        assert (status.round, status.rounds, status.checkpoint_round) == (1000, 5000, 900)
        assert status.losses == {"loss_fake": 0.5}
        assert "ETA       26 min 40 s" in describe(status)
    assert read_status(tmp_path).state == "finished"


def test_a_run_in_an_output_that_had_another(tmp_path: Path) -> None:
    """The old run's rounds, losses and checkpoint are not this one's."""
    places = Places(tmp_path)
    old, new = History(places.history, "key"), History(places.history, "new")
    for r in range(5000):
        old.append(row(r))
    snapshot(places, 5000)
    with Reporter(vary(RECIPE, {"distill.rounds": 100}), places) as reporter:
        reporter.stage("encode", 4, 1)
        assert read_status(tmp_path).round is None
        reporter.distils("new")
        reporter.stage("distill", 100, 0)
        status = read_status(tmp_path)
        assert (status.done, status.round) == (0, None)
        for r in range(3):
            new.append(row(r) | {"loss_fake": 9.0})
        status = read_status(tmp_path)
        assert (status.done, status.total, status.round, status.rounds) == (3, 100, 3, 100)
        assert status.losses == {"loss_fake": 9.0} and status.checkpoint_round is None
        assert status.eta_seconds == pytest.approx(97 * 0.4)
    # The old recipe again, which only looks at its finished student.
    with Reporter(RECIPE, places) as reporter:
        reporter.distils("key")
        reporter.stage("distill", 5000, 0)
        status = read_status(tmp_path)
        assert (status.round, status.checkpoint_round) == (5000, 5000)
        assert status.losses == {"loss_fake": 0.5}


def test_a_stage_before_is_counted_in_its_store(tmp_path: Path) -> None:
    """A store may hold what other recipes put there: only what comes counts."""
    places = Places(tmp_path)
    write_part(places.targets, [("other", torch.zeros(2))])
    with Reporter(RECIPE, places) as reporter:
        reporter.stage("targets", 10, 4)
        assert read_status(tmp_path).done == 4
        write_part(places.targets, [(f"k{i}", torch.zeros(2)) for i in range(3)])
        status = read_status(tmp_path)
        assert (status.done, status.total) == (7, 10)
        assert status.eta_seconds is not None and status.eta_seconds > 0


def test_silence_is_told_from_life_failure_and_end(tmp_path: Path) -> None:
    places = Places(tmp_path)
    with Reporter(RECIPE, places, beat=0.05):
        progress = read_progress(places)
        assert progress is not None
        assert read_status(tmp_path, progress.alive + SILENT_SECONDS - 1).state == "running"
        silent = read_status(tmp_path, progress.alive + SILENT_SECONDS + 1)
        assert silent.state == "stopped" and "goes on from here" in describe(silent)
        while read_progress(places) == progress:
            pass
    with pytest.raises(OSError, match="disk"), Reporter(RECIPE, places):
        raise OSError("the disk is full")
    failed = read_status(tmp_path)
    assert failed.state == "failed" and failed.error == "OSError: the disk is full"


def test_only_looks(tmp_path: Path) -> None:
    """A damaged part is the run's to deal with."""
    places = Places(tmp_path)
    with Reporter(RECIPE, places) as reporter:
        reporter.stage("encode", 10, 0)
    places.encodings.mkdir(parents=True)
    part = places.encodings / "part-0.parquet"
    part.write_bytes(b"PAR1 torn")
    read_status(tmp_path)
    assert part.exists()


def test_by_folder_by_recipe_and_for_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = Places(tmp_path / "out")
    with Reporter(RECIPE, places):
        pass
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"name: tiny\nbank: b\noutput: {places.output}\n")
    assert main(["status", str(recipe), "--json"]) == 0
    by_recipe = json.loads(capsys.readouterr().out)
    assert main(["status", str(places.output), "--json"]) == 0
    by_folder = json.loads(capsys.readouterr().out)
    assert by_recipe["state"] == by_folder["state"] == "finished"
    assert main(["status", str(places.output)]) == 0
    assert "finished" in capsys.readouterr().out


def test_where_no_run_has_been(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(tmp_path)]) == 2
    assert "no run has been here" in capsys.readouterr().err
    with pytest.raises(InputError):
        read_status(tmp_path / "missing.yaml")
    progress_file(Places(tmp_path)).write_text('{"state": "running"}')
    with pytest.raises(InputError):
        read_status(tmp_path)


def test_a_run_in_s3_from_a_machine_that_has_nothing_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = f"s3://{BUCKET}/run"

    def on(node: str) -> Places:
        monkeypatch.setenv("COLLECTIONLORA_CACHE", str(tmp_path / node))
        return Places.of(output)

    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{{name: tiny, bank: b, output: {output}}}")
    with s3_server(tmp_path / "log.txt") as endpoint:
        for name, value in settings(endpoint, tmp_path).items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        on("nobody")
        assert main(["status", str(recipe)]) == 2
        assert f"{output}: no run has been here" in capsys.readouterr().err
        places = on("node")
        write_part(places.targets, [("other", torch.zeros(2))])
        with Reporter(RECIPE, places) as reporter:
            reporter.stage("targets", 10, 4)
            write_part(places.targets, [(f"k{i}", torch.zeros(2)) for i in range(3)])
            on("mine")
            assert read_status(recipe).done == 7
            places = on("node")
            reporter.distils("key")
            reporter.stage("distill", 5000, 0)
            history = History(places.history, "key")
            for r in range(20):
                history.append(row(r))
            history.publish()
            for name, done in (("key", 10), ("older", 4000)):
                result = {"metrics": {"round": done}, "checkpoint_dir_name": f"checkpoint_{done}"}
                folder = f"{output}/training/{name}"
                text = json.dumps({"latest_checkpoint_result": result})
                write_atomic(f"{folder}/checkpoint_manager_snapshot.json", text.encode())
                write_atomic(f"{folder}/checkpoint_{done}/student/state.json", b"{}")
            on("mine")
            status = read_status(output)
            assert (status.output, status.state, status.round) == (output, "running", 20)
            assert status.checkpoint_round == 10
            # Of a version that told nobody the run's name: the run with the newest checkpoint.
            on("node")
            reporter.distils("")
            History(places.history).append(row(0))
            History(places.history).publish()
            on("mine")
            assert read_status(output).checkpoint_round == 4000
        object_store.client.cache_clear()
