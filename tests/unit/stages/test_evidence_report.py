"""A report is drawn from its JSON alone, the same way each time."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.evidence import Cell, to_json
from pipeline.stages.evidence_report import write_evidence


def write_report(folder: Path, name: str, methods: list[str]) -> None:
    rng = np.random.default_rng(0)
    cells = [
        Cell(m, s, f"e{e}", {"fidelity": 20 + e + float(rng.normal()), "bad_case_rate": 0.1 * s})
        for m in methods
        for s in (0, 1)
        for e in range(6)
    ]
    curve = [{"round": float(r), "loss_ta_fm": 1 / (r + 1), "loss_fake": 0.0} for r in range(5)]
    content = {
        "report": name,
        "recipe": {"name": "tiny", "evaluate": {"photographs": 2}},
        "date": "2026-01-01",
        "environment": {"cpu_count": 2, "platform": "here", "git_commit": "abc"},
        "costs": {methods[0]: {"nfe": 4, "ms_per_image": 20.0, "bytes": 1e6}},
        "curves": {f"{methods[0]}, seed 0": curve},
        "cells": to_json(cells),
    }
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "methods", "said"),
    [
        ("main", ["student", "teacher"], "student less"),
        ("ablation", ["all", "PDSR"], "all less"),
        ("scale", ["student @ 5", "student @ 10"], "student @ 10"),
    ],
)
def test_tables_and_figures_from_json(
    tmp_path: Path, name: str, methods: list[str], said: str
) -> None:
    write_report(tmp_path, name, methods)
    write_evidence(tmp_path, name)
    text = (tmp_path / f"{name}.md").read_text()
    assert said in text and "commit abc" in text and "seeds [0, 1]" in text
    for figure in (f"{name}.png", f"{name}_curves.png"):
        assert f"({figure})" in text
        with Image.open(tmp_path / figure) as image:
            assert np.asarray(image.convert("L")).std() > 5
    write_evidence(tmp_path, name)
    assert (tmp_path / f"{name}.md").read_text() == text


def test_a_report_that_was_not_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="collectionlora bench"):
        write_evidence(tmp_path, "main")
