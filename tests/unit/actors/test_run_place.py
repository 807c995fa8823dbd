"""The list of a run's checkpoints is Ray Train's own, which writes it to S3 past the mirror."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from actors.run_place import SNAPSHOT, STUDENT_FOLDER, RunPlace
from pipeline import object_store
from pipeline.distill.names import SCORE
from pipeline.mirror import local_path
from pipeline.problems import StorageError
from pipeline.storage import atomic_folder
from tests.s3_server import BUCKET, client_for, s3_server, settings


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(tmp_path / "log.txt") as endpoint:
        for name, value in settings(endpoint, tmp_path / "node").items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        yield endpoint
        object_store.client.cache_clear()


def as_ray_train(endpoint: str, scores: dict[str, float]) -> None:
    rows = [
        {"checkpoint_dir_name": name, "metrics": {"round": float(i), SCORE: score}}
        for i, (name, score) in enumerate(scores.items())
    ]
    snapshot = {"checkpoint_results": rows, "latest_checkpoint_result": rows[-1]}
    files = {SNAPSHOT: json.dumps(snapshot)}
    files |= {f"{name}/{STUDENT_FOLDER}/state.json": name for name in scores}
    for name, text in files.items():
        key = f"run/training/key/{name}"
        client_for(endpoint).put_object(Bucket=BUCKET, Key=key, Body=text.encode())


def test_the_best_checkpoint_in_s3_is_that_of_the_list_there(endpoint: str) -> None:
    place = RunPlace(local_path(f"s3://{BUCKET}/run/training"), "key")
    with pytest.raises(StorageError, match="start the same recipe again"):
        place.best_checkpoint()
    as_ray_train(endpoint, {"checkpoint_1": 0.5, "checkpoint_2": 0.7})
    assert (place.best_checkpoint() / "state.json").read_text() == "checkpoint_1"
    # What was read once is no news of a run that has gone on.
    as_ray_train(endpoint, {"checkpoint_1": 0.5, "checkpoint_2": 0.7, "checkpoint_3": 0.1})
    assert (place.best_checkpoint() / "state.json").read_text() == "checkpoint_3"
    assert place.checkpointed_round() == 2


def test_a_whole_run_is_not_said_to_be_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = RunPlace(tmp_path, "key")
    with atomic_folder(place.folder / "checkpoint_1" / STUDENT_FOLDER) as folder:
        (folder / "state.json").write_text('{"round": 7}')
    place.heal()
    assert place.checkpointed_round() == 7
    # Its list begins like a checkpoint.
    place.heal()
    assert capsys.readouterr().out == ""
