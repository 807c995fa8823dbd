"""The report: its schema, its means, its tables, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation.metrics import bootstrap_mean
from pipeline.evaluation.report import (
    ImageScore,
    MethodCost,
    bleed,
    build_report,
    effects_table,
    environment,
    markdown_table,
    run_metrics,
    write_report,
)

COUNTERS = {
    "forwards_per_student_update": {"student_group": 26, "teacher_pool": 15},
    "seconds_per_round": 2.5,
    "student_wait_share": 0.4,
}
COSTS = {"student": MethodCost(4, 81.5), "base": MethodCost(80, 1600), "teacher": MethodCost(80, 1)}


def scores() -> list[ImageScore]:
    """Three methods, a tone effect and a textured one, two photographs, two draws each."""
    rows = []
    for m, method in enumerate(["student", "base", "teacher"]):
        for effect, family in [("sepia", "tone"), ("snow", "textured")]:
            for p, photograph in enumerate(["coffee", "rocket"]):
                for draw in range(2):
                    quality = 20.0 + 3 * m + p + 0.1 * draw
                    bad = method == "base"
                    rows.append(
                        ImageScore(
                            method=method,
                            effect=effect,
                            family=family,
                            photograph=photograph,
                            draw=draw,
                            # A PSNR against one sample of a texture means nothing: to be ignored.
                            fidelity=quality,
                            texture_distance=None if family == "tone" else 0.1 * quality,
                            bad_case=float(bad),
                            subject=0.9,
                            happened="source" if bad else effect,
                        )
                    )
    return rows


def test_the_schema_is_that_of_the_issue() -> None:
    report = build_report(scores(), COSTS, COUNTERS, {"python": "3"}, bootstrap=200, seed=0)
    assert list(report) == ["methods", "counters", "environment"]
    assert list(report["methods"]) == ["base", "teacher", "student"]
    assert report["counters"] == COUNTERS and report["environment"] == {"python": "3"}
    student = report["methods"]["student"]
    assert list(student) == ["nfe", "ms_per_image", "metrics", "effects"]
    assert student["nfe"] == 4 and student["ms_per_image"] == 81.5
    all_of = {"fidelity", "texture_distance", "bad_case_rate", "subject"}
    assert set(student["metrics"]) == all_of
    assert set(student["effects"]["sepia"]) == all_of - {"texture_distance"}
    assert set(student["effects"]["snow"]) == all_of - {"fidelity"}
    for metrics in [student["metrics"], *student["effects"].values()]:
        for entry in metrics.values():
            assert list(entry) == ["mean", "ci95", "n"]
            assert entry["ci95"][0] <= entry["mean"] <= entry["ci95"][1]


def test_means_are_over_images_and_intervals_over_photographs() -> None:
    report = build_report(scores(), COSTS, COUNTERS, {}, bootstrap=300, seed=7)
    found = report["methods"]["student"]["metrics"]["fidelity"]
    values, photographs = [20.0, 20.1, 21.0, 21.1], ["coffee", "coffee", "rocket", "rocket"]
    expected = bootstrap_mean(values, photographs, 300, 7)
    assert found == {"mean": expected.mean, "ci95": [expected.lo, expected.hi], "n": 4}
    assert found["mean"] == pytest.approx(20.55)
    # Two photographs, resampled whole: the interval spans their means.
    assert found["ci95"] == [pytest.approx(20.05), pytest.approx(21.05)]
    assert report["methods"]["base"]["metrics"]["bad_case_rate"]["mean"] == 1
    assert report == build_report(scores(), COSTS, COUNTERS, {}, bootstrap=300, seed=7)


def test_unknown_families_keep_what_was_scored() -> None:
    rows = [replace(s, family="pairs") for s in scores() if s.effect == "snow"]
    effect = build_report(rows, COSTS, COUNTERS, {}, 100, 0)["methods"]["base"]["effects"]["snow"]
    assert {"fidelity", "texture_distance"} <= set(effect)


def test_what_it_refuses() -> None:
    rows = scores()
    with pytest.raises(ValueError, match=r"scored twice .*'snow', 'rocket', 1"):
        build_report([*rows, rows[7]], COSTS, COUNTERS, {}, 100, 0)
    with pytest.raises(ValueError, match="costs of"):
        build_report(rows, {"base": MethodCost(1, 1)}, COUNTERS, {}, 100, 0)
    with pytest.raises(ValueError, match="at least one score"):
        build_report([], {}, COUNTERS, {}, 100, 0)
    with pytest.raises(ValueError, match="counters must be"):
        build_report(rows, COSTS, COUNTERS | {"more": 1}, {}, 100, 0)
    with pytest.raises(ValueError, match="finite"):
        build_report([replace(rows[0], subject=float("nan")), *rows[1:]], COSTS, COUNTERS, {}, 9, 0)


def test_tables() -> None:
    report = build_report(scores(), COSTS, COUNTERS, {}, 100, 0)
    lines = markdown_table(report).splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1
    assert lines[0].startswith("| method") and "bad-case rate ↓" in lines[0]
    assert lines[4].startswith("| student | 4   | 82 ") and "20.55 [20.05, 21.05]" in lines[4]
    table = effects_table(report)
    assert len(table.splitlines()) == 2 + 2 * 3
    assert "| sepia  | fidelity, dB ↑     | 23.55 [23.05, 24.05]" in table
    partial = [s for s in scores() if s.method != "base" or s.effect == "snow"]
    assert "| - " in effects_table(build_report(partial, COSTS, COUNTERS, {}, 100, 0))


def test_run_metrics_have_the_same_names_for_a_teacher_and_the_student() -> None:
    report = build_report(scores(), COSTS, COUNTERS, {}, 100, 0)
    student, teacher = run_metrics(report, "student"), run_metrics(report, "teacher", "sepia")
    assert set(teacher) < set(student)
    assert student["nfe"] == 4 and student["fidelity"] == pytest.approx(20.55)
    assert teacher["fidelity"] == teacher["sepia/fidelity"] == pytest.approx(26.55)
    assert teacher["sepia/fidelity_lo"] == pytest.approx(26.05)
    assert "snow/subject" in student and "snow/fidelity" not in student


def test_bleed() -> None:
    rows = scores()
    happened = {"coffee": "snow", "rocket": "unheard of"}
    rows = [
        replace(s, happened=happened[s.photograph])
        if (s.method, s.effect) == ("student", "sepia")
        else s
        for s in rows
    ]
    names = ["sepia", "snow", "rain"]
    expected = [[0, 0.5, 0, 0.5], [0, 1, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(bleed(rows, "student", names), expected)
    np.testing.assert_array_equal(bleed(rows, "base", names[:2]), [[0, 0, 1], [0, 0, 1]])


def test_write_report(tmp_path: Path) -> None:
    report = build_report(scores(), COSTS, COUNTERS, environment(), 100, 0)
    write_report(report, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
    assert set(report["environment"]["packages"]) == {"torch", "ray", "diffusers", "peft"}
    with pytest.raises(ValueError, match="JSON"):
        write_report({"x": float("nan")}, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text()) == report
