"""What a run leaves in MLflow when it is run again."""

from pathlib import Path
from typing import cast

from pipeline import tracking
from pipeline.bank import Bank
from pipeline.config import load_recipe
from pipeline.places import Places
from pipeline.stages.distill import History
from pipeline.stages.publish import Publisher


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
