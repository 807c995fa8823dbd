"""What MLflow gets of a report: the names that every run uses."""

import json
from pathlib import Path

import pytest

from pipeline.compare import compare
from pipeline.comparison.gather import gather, stores_of
from pipeline.config import load_recipe, recipe_hash
from pipeline.evaluation.evidence import Cell, to_json
from pipeline.stages.evidence.publishing import contender_metrics, publish_evidence, role_of
from pipeline.tracking import default_uri

RECIPE = Path("pipeline/recipes/bench.yaml")


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


def test_every_seeds_student_is_compared_under_its_own_name(tmp_path: Path) -> None:
    cells = [Cell("base", None, "sepia", {"fidelity": 9.0, "bad_case_rate": 1.0})]
    for seed in (0, 1):
        for method in ("student", "cascade"):
            scores = {"fidelity": 20.0 + seed, "bad_case_rate": 0.1}
            cells.append(Cell(method, seed, "sepia", scores))
    recipe, folder = load_recipe(RECIPE), tmp_path / "bench"
    folder.mkdir()
    tracking = {"uri": default_uri(tmp_path), "experiment": "bench"}
    for name in ("main", "ablation"):
        report = {"cells": to_json(cells), "costs": {}, "extra": {}}
        (folder / f"{name}.json").write_text(json.dumps(report))
        publish_evidence(recipe, tracking, tmp_path, name)
    text, mark = compare(tracking["uri"], None, None), recipe_hash(recipe)
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines()]
    found = {row[0]: row[3] for row in rows if row and row[0].startswith("student")}
    assert found == {
        f"student {mark}-{name}-seed{seed}": f"{20 + seed}.00 [{20 + seed}.00, {20 + seed}.00]"
        for name in ("main", "ablation")
        for seed in (0, 1)
    }
    columns = gather(stores_of([str(tmp_path)]))
    names = [column.name for column in columns]
    assert len(set(names)) == len(names)
    assert {f"student {mark[:6]}-main-seed{seed}" for seed in (0, 1)} < set(names)
