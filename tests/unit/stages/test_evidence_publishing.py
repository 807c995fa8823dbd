"""What MLflow gets of a report: the names that every run uses."""

import pytest

from pipeline.evaluation.evidence import Cell
from pipeline.stages.evidence.publishing import contender_metrics, role_of


def test_a_contenders_numbers_have_the_names_that_all_runs_have() -> None:
    cells = [
        Cell("cascade", 0, "snow", {"bad_case_rate": 0.2, "texture_distance": 0.5}),
        Cell("cascade", 0, "sepia", {"bad_case_rate": 0.4, "fidelity": 21.0}),
        Cell("cascade", 0, "general: make it brighter!", {"generality": 25.0}),
    ]
    found = contender_metrics(cells, {"nfe": 4.0, "ms_per_image": 20.0})
    assert found["bad_case_rate"] == pytest.approx(0.3)
    assert found["bad_case_rate_lo"] == pytest.approx(0.2)
    assert found["bad_case_rate_hi"] == pytest.approx(0.4)
    assert found["sepia/fidelity"] == found["fidelity"] == 21.0 and found["nfe"] == 4.0
    assert found["general  make it brighter/generality"] == 25.0
    # MLflow allows letters, digits, underscores, dashes, dots, spaces and slashes.
    assert all(c.isalnum() or c in "_-. /" for name in found for c in name)


def test_only_the_three_that_every_run_has_are_no_baselines() -> None:
    roles = {name: role_of(name) for name in ("base", "teacher", "student", "cascade", "joint-fm")}
    assert roles == {
        "base": "base",
        "teacher": "teacher",
        "student": "student",
        "cascade": "baseline",
        "joint-fm": "baseline",
    }
