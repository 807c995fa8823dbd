"""A run names itself where it writes, so that an output's runs are told apart."""

from pathlib import Path
from typing import Any

import pytest

from pipeline import controller
from pipeline.config import vary
from pipeline.controller import Prepared, run
from pipeline.places import Places
from pipeline.stages.distill import History
from pipeline.stages.encode import Collection
from pipeline.stages.student import run_key_of
from pipeline.status import read_status
from tests.evaluation_case import make_case


def test_the_rounds_and_the_status_of_two_runs_in_one_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = make_case(tmp_path)
    prepared = Prepared([], Collection((), (), ()), case.manifest)

    def distilled(*arguments: Any) -> Path:
        # Round 0 would go to MLflow too.
        for r in range(1, arguments[0].distill.rounds - 1):
            losses = {"loss_fake": 0.5, "loss_ta_fm": 0.4}
            arguments[4]({"round": float(r), "seconds_wait": 0.0, "seconds_update": 1.0, **losses})
        return case.student

    monkeypatch.setattr(controller, "prepare", lambda *_, **__: prepared)
    monkeypatch.setattr(controller, "distilled", distilled)
    history = Places.of(case.recipe.output).history
    for rounds in (9, 5):
        recipe = vary(case.recipe, {"distill.rounds": rounds})
        run(recipe, case.bank, "distill")
        own = History(history, run_key_of(recipe, case.manifest)).load()
        assert [row["round"] for row in own] == [*range(1, rounds - 1)]
        status = read_status(Places.of(recipe.output).output)
        assert (status.state, status.round, status.rounds) == ("finished", rounds - 1, rounds)
