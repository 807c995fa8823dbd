"""Every line of a bench, at a size that means nothing."""

import json
from pathlib import Path

import pytest

from pipeline.cli import main
from pipeline.miniature.bank import write_bank
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
    report = json.loads((folder / "main.json").read_text())
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
    ablation = json.loads((folder / "ablation.json").read_text())
    assert {c["method"] for c in ablation["cells"]} == {"base", "teacher", "PDSR", "all"}
    assert (folder / "scale.md").exists()
    students = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "runs").rglob("student.*")}
    assert main(command) == 0
    for path, when in students.items():
        assert path.stat().st_mtime_ns == when
    again = json.loads((folder / "main.json").read_text())
    assert again["cells"] == report["cells"]
    capsys.readouterr()
    assert main([*command, "--redraw"]) == 0
    assert str(folder / "main.md") in capsys.readouterr().out
