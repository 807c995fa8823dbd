"""Every line of a bench, at a size that means nothing."""

import json
from pathlib import Path

import pytest

from pipeline.cli import REPORTS, main
from pipeline.miniature.bank import write_bank
from pipeline.stages.bench import QUICK
from pipeline.tracking import client, experiments, runs
from tests.tiny_model import write_tiny_model


@pytest.mark.slow
def test_a_quick_bench_of_every_report_and_again_from_its_caches(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_model(tmp_path / "model")
    effects = ["sepia", "snow", "circle_mask"]
    write_bank(tmp_path / "bank", effects, pairs=3, general=20, sources=2, test=4)
    places = {"bank": "bank", "output": "out", "model.path": "model"}
    settings = [f"--set={key}={tmp_path / name}" for key, name in places.items()]
    command = ["bench", "pipeline/recipes/bench.yaml", "--quick", *settings]
    assert main(command) == 0
    folder = tmp_path / "out" / "bench"
    reports = {name: json.loads((folder / f"{name}.json").read_text()) for name in REPORTS}
    report = reports["main"]
    assert {c["method"] for c in report["cells"]} == {
        "base",
        "teacher",
        "teacher-few",
        "merge-linear",
        "merge-ties",
        "merge-dare",
        "student",
        "cascade",
        "joint-fm",
        "joint-fm + acceleration",
    }
    assert {c["seed"] for c in report["cells"]} == {None, 0}
    assert report["costs"]["student"]["nfe"] == 4 and report["costs"]["base"]["bytes"] == 0
    assert any("generality" in c["scores"] for c in report["cells"])
    check_growth(reports["growth"])
    check_composition(reports["composition"])
    check_prompts(reports["prompts"])
    check_deployment(reports["deployment"])
    methods = {c["method"] for c in reports["generality"]["cells"]}
    both = {f"{m}, {kind}" for m in ("teacher", "student") for kind in ("unseen", "trained on")}
    assert methods == {"base", "student"} | both
    assert {c["method"] for c in reports["ablation"]["cells"]} == {
        "base",
        "teacher",
        "all - AOP",
        "all",
    }
    check_published(tmp_path / "out", reports)

    index = (folder / "README.md").read_text()
    for name in REPORTS:
        assert (folder / f"{name}.md").exists() and f"({name}.md)" in index
    students = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").rglob("student.*")}
    assert main(command) == 0
    for path, when in students.items():
        assert path.stat().st_mtime_ns == when
    for name in REPORTS:
        again = json.loads((folder / f"{name}.json").read_text())
        assert again["cells"] == reports[name]["cells"], name
        assert again["extra"] == reports[name]["extra"], name
    capsys.readouterr()
    (folder / "README.md").unlink()
    assert main([*command, "--redraw"]) == 0
    assert str(folder / "main.md") in capsys.readouterr().out
    assert (folder / "README.md").read_text() == index


def check_growth(report: dict) -> None:
    methods = {c["method"]: c["effect"] for c in report["cells"]}
    assert methods["student after, new effects"] == "candy_print"
    assert methods["teacher, new effects"] == "candy_print"
    before, after = (
        {
            c["effect"]: c["scores"]
            for c in report["cells"]
            if c["method"] == f"{student}, old effects"
        }
        for student in ("student before", "student after")
    )
    assert before.keys() == after.keys() == {"sepia", "snow", "circle_mask"}
    # It went on from the finished student, and it moved.
    assert before != after


def check_composition(report: dict) -> None:
    assert {c["method"] for c in report["cells"]} == {
        "student",
        "student in turn",
        "stacked teachers",
        "sequential teachers",
    }
    assert all(", then " in c["effect"] for c in report["cells"])
    costs = report["costs"]
    assert costs["sequential teachers"]["nfe"] == 2 * costs["stacked teachers"]["nfe"]
    assert costs["student in turn"]["nfe"] == 2 * costs["student"]["nfe"]


def check_prompts(report: dict) -> None:
    cosines, bleed = report["extra"]["cosines"], report["extra"]["bleed"]
    assert set(cosines) == {"random triggers", "orthogonal triggers", "no triggers"} == set(bleed)
    assert "triggers" not in cosines["no triggers"]
    worst = {
        name: max(abs(row[j]) for i, row in enumerate(cosines[name]["triggers"]) for j in range(i))
        for name in ("random triggers", "orthogonal triggers")
    }
    assert worst["orthogonal triggers"] < worst["random triggers"]
    for matrix in bleed.values():
        assert [sum(row) for row in matrix] == pytest.approx([1, 1, 1], abs=1e-3)


def check_deployment(report: dict) -> None:
    two, four, student = report["extra"]["serving"]
    assert (two["loras"], four["loras"], student["loras"]) == (2, 4, 1)
    assert four["stored_bytes"] > 1.5 * two["stored_bytes"]
    assert student["switches"] == 1 < two["switches"] <= four["switches"] + 1 <= 7
    assert [row["loras"] for row in report["extra"]["routing"]] == [2, 3]
    assert {(c["method"], c["seed"]) for c in report["cells"]} == {
        ("teacher", None),
        ("student", 0),
        ("teacher behind a router", None),
        ("student in free words", 0),
    }


def check_published(output: Path, reports: dict) -> None:
    store = client(f"sqlite:///{output / 'mlflow.db'}")
    (experiment,) = [i for name, i in experiments(store).items() if name != "Default"]
    # One acceleration LoRA serves the whole bank and each part of it.
    names = [run.info.run_name for run in store.search_runs([experiment])]
    assert names.count("acceleration-seed0") == 1
    rows = {row.name: row for row in runs(store, [experiment])}
    cells = [c for c in reports["main"]["cells"] if c["method"] == "cascade"]
    mean = sum(c["scores"]["bad_case_rate"] for c in cells) / len(cells)
    assert rows["cascade, seed 0"].metrics["bad_case_rate"] == pytest.approx(mean)
    assert rows["cascade, seed 0"].metrics["nfe"] == 4
    assert rows["cascade, seed 0"].role == "baseline" and rows["base"].role == "base"


@pytest.mark.slow
def test_a_quick_bench_where_nobody_knows_the_truth(tmp_path: Path) -> None:
    """Every report that can be made is, of outputs held against the teachers'."""
    write_tiny_model(tmp_path / "model")
    write_bank(tmp_path / "bank", ["sepia", "snow"], pairs=3, general=6, sources=2, test=2)
    write_bank(tmp_path / "new", ["candy_print"], pairs=3, general=1, sources=1, test=1)
    growth = QUICK["bench.growth"] | {"bank": str(tmp_path / "new")}
    settings = QUICK | {"evaluate.truth": "pairs", "bench.growth": growth, "bench.scale": [1, 2]}
    settings |= {"bank": str(tmp_path / "bank"), "output": str(tmp_path / "out")}
    settings |= {"model.path": str(tmp_path / "model")}
    names = [name for name in REPORTS if name != "composition"]
    command = ["bench", "pipeline/recipes/bench.yaml", *(f"--report={name}" for name in names)]
    assert main([*command, *(f"--set={k}={json.dumps(v)}" for k, v in settings.items())]) == 0
    folder = tmp_path / "out" / "bench"
    found = {name: json.loads((folder / f"{name}.json").read_text()) for name in names}
    assert {c["method"] for c in found["prompts"]["cells"]} == set(found["prompts"]["costs"])
    assert "teacher" not in found["prompts"]["costs"], "it judges, nobody asked for it"
    scores = {(c["method"], c["effect"]): c["scores"] for c in found["main"]["cells"]}
    for cell in found["scale"]["cells"]:
        if cell["method"] == "teacher @ 2":
            assert cell["scores"] == scores["teacher", cell["effect"]]
