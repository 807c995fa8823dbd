"""Promote: the alias moves only where the rule holds; a real registry in a SQLite file."""

from pathlib import Path

import pytest
import yaml
from mlflow.exceptions import MlflowException

from pipeline import cli, object_store, tracking
from pipeline.config import load_recipe, recipe_hash
from pipeline.mirror import local_path
from pipeline.promote import ALIAS
from pipeline.tracking import Tracker, publish_store
from tests.s3_server import BUCKET, s3_server, settings

GOOD = {"fidelity": 21.0, "texture_distance": 0.14, "bad_case_rate": 0.02, "nfe": 4.0}


class Place:
    """A recipe's output with students in its store."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recipe(self, name: str, **more: object) -> Path:
        path = self.folder / f"{name}.yaml"
        content = {"name": "demo", "bank": "bank", "output": str(self.folder / "out")} | more
        path.write_text(yaml.safe_dump(content))
        return path

    def student(self, recipe: Path, **metrics: float) -> str:
        key = recipe_hash(load_recipe(recipe))
        tracker = Tracker.open(None, "demo", self.folder / "out")
        run = tracker.child(tracker.parent("demo", key, {}), "student", "student", None, key)
        tracker.log_metrics(run, GOOD | metrics)
        weights = self.folder / "student" / "w.safetensors"
        weights.parent.mkdir(exist_ok=True)
        weights.write_bytes(b"weights")
        tracker.log_artifact(run, weights.parent, "student")
        return run

    def champion(self) -> str | None:
        client = tracking.client(tracking.default_uri(self.folder / "out"))
        try:
            return str(client.get_model_version_by_alias("demo", ALIAS).run_id)
        except MlflowException:
            return None


def test_a_champion_gives_way_only_to_one_that_is_not_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place(tmp_path)
    first, better, worse = (place.recipe(n, seed=i) for i, n in enumerate(("a", "b", "c")))
    runs = [place.student(first), place.student(better, fidelity=20.95, bad_case_rate=0.0)]
    place.student(worse, fidelity=25.0, bad_case_rate=0.05, texture_distance=0.2)

    assert cli.main(["promote", str(first), "--dry-run"]) == 0
    assert place.champion() is None
    assert cli.main(["promote", str(first)]) == 0
    assert place.champion() == runs[0]
    # A tenth of a dB is the default rule's leeway, and 0.05 dB are less.
    assert cli.main(["promote", str(better)]) == 0
    assert place.champion() == runs[1]

    capsys.readouterr()
    assert cli.main(["promote", str(worse)]) == 1
    text = capsys.readouterr().out
    assert place.champion() == runs[1]
    failing = [line for line in text.splitlines() if line.startswith("FAILS")]
    assert len(failing) == 2
    assert "bad-case rate ↓: student 0.050, champion 0.000" in failing[0]
    assert "texture distance ↓: student 0.200, champion 0.140" in failing[1]
    # A rule that looks at fidelity alone lets it pass, and back by the run's id.
    only = ["--set", "promote.worse_by={fidelity: 0.0}"]
    assert cli.main(["promote", str(worse), *only, "--dry-run"]) == 0
    assert place.champion() == runs[1]
    assert cli.main(["promote", str(first), "--run", runs[0][:10]]) == 1
    wide = ["--set", "promote.worse_by={bad_case_rate: 0.1}"]
    assert cli.main(["promote", str(first), "--run", runs[0][:10], *wide]) == 0
    assert place.champion() == runs[0]


def test_what_cannot_be_promoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = Place(tmp_path)
    assert cli.main(["promote", str(place.recipe("a"))]) == 2
    assert "no such store" in capsys.readouterr().err
    place.student(place.recipe("a"))
    assert cli.main(["promote", str(place.recipe("b", seed=7))]) == 2
    assert "not one scored student" in capsys.readouterr().err
    assert cli.main(["promote", str(place.recipe("a")), "--run", "nobody"]) == 2
    wrong = place.recipe("c", promote={"worse_by": {"beauty": 1.0}})
    assert cli.main(["promote", str(wrong)]) == 2
    assert place.champion() is None


def test_a_store_in_s3_is_read_and_changed_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{BUCKET}/run"
    recipe = Place(tmp_path).recipe("a", output=output)
    key = recipe_hash(load_recipe(recipe))

    def champion(node: str) -> str | None:
        monkeypatch.setenv("COLLECTIONLORA_CACHE", str(tmp_path / node))
        assert cli.main(["promote", str(recipe), "--dry-run"]) == 0
        client = tracking.client(tracking.default_uri(local_path(output)))
        try:
            return str(client.get_model_version_by_alias("demo", ALIAS).run_id)
        except MlflowException:
            return None

    with s3_server(tmp_path / "log.txt") as endpoint:
        for name, value in settings(endpoint, tmp_path / "node").items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        tracker = Tracker.open(None, "demo", local_path(output), f"{output}/mlartifacts")
        run = tracker.child(tracker.parent("demo", key, {}), "student", "student", None, key)
        tracker.log_metrics(run, GOOD)
        publish_store(local_path(output))
        assert champion("mine") is None
        assert cli.main(["promote", str(recipe)]) == 0
        assert champion("another") == run
        object_store.client.cache_clear()
