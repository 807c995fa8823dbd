"""What a run leaves in MLflow when it is run again, here or on another node."""

from pathlib import Path
from typing import cast

import pytest

from pipeline import mirror, object_store, tracking
from pipeline.bank import Bank
from pipeline.config import load_recipe
from pipeline.places import Places
from pipeline.stages.distill import History
from pipeline.stages.publish import Publisher
from tests.s3_server import BUCKET, s3_server, settings


def test_a_finished_run_that_is_only_looked_at_stays_finished(tmp_path: Path) -> None:
    recipe = load_recipe("pipeline/recipes/demo.yaml", [f"output={tmp_path}"])
    places = Places(tmp_path)
    history = History(places.history)
    bank = cast("Bank", None)  # no picture is published here
    on_metrics = Publisher(recipe, bank, places).progress(history)
    on_metrics({"round": 0.0, "loss_fake": 0.5, "loss_ta_fm": 0.4, "seconds_wait": 0.0})

    uri = tracking.default_uri(tmp_path)
    store = tracking.client(uri)
    rows = tracking.runs(store, list(tracking.experiments(store).values()))
    (student,) = (row.run_id for row in rows if row.role == "student")
    assert tracking.history(store, student, "train/loss_fake") == [(0, 0.5)]
    store.set_terminated(student)

    Publisher(recipe, bank, places).progress(history)
    assert store.get_run(student).info.status == "FINISHED"


def test_a_run_in_s3_goes_on_elsewhere_with_all_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = f"s3://{BUCKET}/run"
    recipe = load_recipe("pipeline/recipes/demo.yaml", [f"output={output}"])
    bank = cast("Bank", None)

    def rounds(node: str, *done: int) -> Places:
        monkeypatch.setenv("COLLECTIONLORA_CACHE", str(tmp_path / node))
        places = Places.of(output)
        on_metrics = Publisher(recipe, bank, places).progress(History(places.history, "key"))
        for r in done:
            on_metrics({"round": r, "loss_fake": 0.5, "loss_ta_fm": 0.4, "seconds_wait": 0.0})
        return places

    with s3_server(tmp_path / "log.txt") as endpoint:
        for name, value in settings(endpoint, tmp_path).items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        rounds("first", *range(11))
        # The first node is lost at this point; its checkpoint was that of round 9.
        rounds("second", 9, 10, 20)
        places = rounds("third")
        history = [row["round"] for row in History(places.history, "key").load()]
        assert history == [*range(11), 20]
        assert mirror.fetch(places.output / tracking.DEFAULT_STORE)
        object_store.client.cache_clear()
    store = tracking.client(tracking.default_uri(places.output))
    rows = tracking.runs(store, list(tracking.experiments(store).values()))
    (student,) = (row.run_id for row in rows if row.role == "student")
    assert [step for step, _ in tracking.history(store, student, "train/loss_fake")] == [0, 10]
