"""The judges' part of a report."""

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.field_report import FieldScore
from pipeline.places import Places
from pipeline.stages import judge_report
from pipeline.stages.evaluate import Evaluation
from pipeline.stages.judge import Judged
from tests.evaluation_case import make_case

# Two crops of one photograph say nearly the same, the other photograph something else.
VALUES = {"coffee_001": 0.0, "coffee_006": 0.0, "cat_002": 1.0}


@pytest.mark.parametrize(("truth", "independent"), [("miniature", 2), ("pairs", 3)])
def test_crops_of_one_photograph_are_drawn_together_by_the_judges_bootstrap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, truth: str, independent: int
) -> None:
    case = make_case(tmp_path, truth=truth)
    scores = [FieldScore("student", "snow", name, "clip", v) for name, v in VALUES.items()]
    monkeypatch.setattr(judge_report, "judge", lambda *_: Judged(scores, {}, []))
    drawn: list[set[str]] = []

    def estimates(scores: list[FieldScore], bootstrap: int, seed: int) -> dict[str, Any]:
        drawn.append({s.photograph for s in scores})
        return {}

    monkeypatch.setattr(judge_report, "field_estimates", estimates)
    places = Places(tmp_path / "out")
    places.output.mkdir()
    (places.output / "report.md").write_text("# tiny\n")
    report = {"methods": {"student": {"nfe": 4}}}
    found = Evaluation([], {}, [], tmp_path)
    judge_report.with_judges(case.recipe, case.bank, case.test, found, report, places, lambda: None)
    assert [len(names) for names in drawn] == [independent]
    assert json.loads((places.output / "report.json").read_bytes())["methods"]
