"""A report is drawn from its JSON alone, the same way each time."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.evidence import Cell, to_json
from pipeline.stages.evidence_report import write_evidence

EXTRA = {
    "prompts": {
        "effects": ["a", "b"],
        "cosines": {
            "random triggers": {
                "triggers": [[1.0, -0.5], [-0.5, 1.0]],
                "prompts": [[1.0, 0.25], [0.25, 1.0]],
            },
            "no triggers": {"prompts": [[1.0, 0.75], [0.75, 1.0]]},
        },
        "bleed": {"random triggers": [[0.5, 0.25, 0.25], [0.125, 0.875, 0.0]]},
    },
    "deployment": {
        "queries": 20,
        "effects": 2,
        "serving": [
            {
                "name": name,
                "loras": loras,
                "stored_bytes": 1e6 * loras,
                "switches": switches,
                "seconds_per_switch": 0.25,
                "seconds_switching": 0.25 * switches,
                "resident_bytes": 3e6,
                "resident_bytes_all": 2e6 + 1e6 * loras,
            }
            for name, loras, switches in (
                ("bank of 2", 2, 11),
                ("bank of 4", 4, 19),
                ("student", 1, 1),
            )
        ],
        "routing": [{"loras": 2, "errors": 0.0}],
    },
}


def write_report(folder: Path, name: str, methods: list[str], **more: object) -> None:
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
    } | more
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


def test_a_report_says_how_many_pictures_there_were_and_of_what(tmp_path: Path) -> None:
    for name, more, said in (
        ("main", {}, "6 effects, training seeds [0, 1], 2 held-out pictures an effect"),
        ("main", {"photographs": 1}, "1 held-out pictures an effect. Means with 95 % intervals"),
        ("composition", {}, "6 pairs, training seeds [0, 1], 2 held-out pictures a pair."),
    ):
        write_report(tmp_path, name, ["student", "teacher"], **more)
        write_evidence(tmp_path, name)
        assert said in (tmp_path / f"{name}.md").read_text()


def test_a_report_that_was_not_made_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="collectionlora bench"):
        write_evidence(tmp_path, "main")


def test_prompts_are_compared_by_their_cosines_and_by_what_bled(tmp_path: Path) -> None:
    pairs = [["random triggers", "no triggers"]]
    methods = ["random triggers", "no triggers"]
    write_report(tmp_path, "prompts", methods, extra=EXTRA["prompts"], pairs=pairs)
    write_evidence(tmp_path, "prompts")
    lines = (tmp_path / "prompts.md").read_text().splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    # Mean and largest |cos| off the diagonal; of six outputs' shares, those on the other effect.
    assert ["random triggers", "0.500", "0.500", "0.250", "0.250", "0.188"] in rows
    assert ["no triggers", "-", "-", "0.750", "0.750", "-"] in rows
    assert any(line.startswith("| random triggers | no triggers") for line in lines)
    for figure in ("cosines_triggers", "cosines_prompts", "bleed"):
        assert f"![prompts_{figure}](prompts_{figure}.png)" in lines
        assert (tmp_path / f"prompts_{figure}.png").exists()


def test_a_bank_is_held_against_the_student(tmp_path: Path) -> None:
    write_report(tmp_path, "deployment", ["student", "teacher"], extra=EXTRA["deployment"])
    write_evidence(tmp_path, "deployment")
    lines = (tmp_path / "deployment.md").read_text().splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines]
    assert ["bank of 2", "2.00", "11", "250", "2.8", "3.00", "4.00", "0.000"] in cells
    # Copies say nothing of routing.
    assert ["bank of 4", "4.00", "19", "250", "4.8", "3.00", "6.00", "-"] in cells
    assert ["student", "1.00", "1", "250", "0.2", "3.00", "3.00", "none to make"] in cells


def test_one_page_holds_all_reports_in_their_order(tmp_path: Path) -> None:
    for name in ("growth", "main"):
        write_report(tmp_path, name, ["student", "teacher"])
        write_evidence(tmp_path, name)
    page = (tmp_path / "README.md").read_text()
    assert page.index("## The student against") < page.index("## Effects added")
    assert "### Paired differences" in page and "![growth](growth.png)" in page
    assert "](#the-student-against-what-one-would-do-instead)" in page
    assert "Two effects composed" not in page
