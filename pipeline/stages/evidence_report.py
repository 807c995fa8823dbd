"""Draw a bench's reports from their JSON alone: tables in Markdown, figures in PNG, an index."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.evidence import Cell, from_json, paired_table, pairs_table, table
from pipeline.evaluation.evidence_plots import curves_figure, interval_figure, scale_figure
from pipeline.problems import InputError, Problem
from pipeline.stages.evidence_sections import sections
from pipeline.storage import write_atomic

TITLES = {
    "main": "The student against what one would do instead",
    "ablation": "What each idea is worth",
    "scale": "By number of effects",
    "growth": "Effects added to a finished student",
    "composition": "Two effects composed",
    "generality": "Instructions and photographs beyond the bank",
    "prompts": "What triggers are worth",
    "deployment": "One student against a bank of LoRAs",
}
# Whom the others are held against.
STUDENT = {"main": "student", "ablation": "all"}
INDEX = "README.md"


def write_evidence(folder: Path, name: str) -> None:
    """Write ``<name>.md`` and its figures beside ``<name>.json``, from what that holds.

    Raises:
        InputError: there is no such report in the folder.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        remedy = f"make it: collectionlora bench RECIPE --report {name}"
        raise InputError([Problem(str(path), "", None, "no such report", remedy)])
    report = json.loads(path.read_text(encoding="utf-8"))
    cells = from_json(report["cells"])
    lines = [f"# {TITLES[name]}", "", *_body(folder, name, report, cells)]
    write_atomic(folder / f"{name}.md", "\n".join(lines).encode())
    write_index(folder)


def write_index(folder: Path) -> Path:
    """One page with all reports that are there, in their order."""
    lines = ["# Evidence", ""]
    there = [name for name in TITLES if (folder / f"{name}.md").exists()]
    lines += [
        f"- [{TITLES[name]}](#{_anchor(TITLES[name])}) ([alone]({name}.md))" for name in there
    ]
    for name in there:
        # A report's own headings are one level lower here.
        for line in ["", *(folder / f"{name}.md").read_text(encoding="utf-8").splitlines()]:
            lines.append(f"#{line}" if line.startswith("#") else line)
    return write_atomic(folder / INDEX, ("\n".join(lines).rstrip() + "\n").encode())


def _anchor(title: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return "".join(c for c in title.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _body(folder: Path, name: str, report: Mapping[str, Any], cells: list[Cell]) -> list[str]:
    lines = [_where(report), ""]
    if cells:
        lines.append(table(cells, report["costs"], STUDENT.get(name, "")))
    if name in STUDENT and any(c.method == STUDENT[name] for c in cells):
        lines += ["", "## Paired differences", "", paired_table(cells, STUDENT[name])]
    if held := pairs_table(cells, report.get("pairs", [])):
        lines += ["", "## Paired differences", "", held]
    own, figures = sections(folder, name, report.get("extra", {}))
    if own:
        lines += ["", *own]
    figures += _draw(folder, name, report, cells)
    return [*lines, "", *(f"![{figure.stem}]({figure.name})" for figure in figures), ""]


def _where(report: Mapping[str, Any]) -> str:
    machine, recipe = report["environment"], report["recipe"]
    seeds = sorted({c["seed"] for c in report["cells"] if c["seed"] is not None})
    effects = {c["effect"] for c in report["cells"] if not c["effect"].startswith("general:")}
    # Reports of before it was counted have the setting alone.
    photographs = report.get("photographs", recipe["evaluate"]["photographs"])
    one = "pair" if report["report"] == "composition" else "effect"
    return (
        f"Recipe {recipe['name']}, {report['date']}, {machine['cpu_count']} CPUs, "
        f"{machine['platform']}, commit {machine['git_commit']}. {len(effects)} {one}s, training "
        f"seeds {seeds}, {photographs} held-out pictures {'a' if one == 'pair' else 'an'} {one}. "
        f"Means with 95 % intervals over {one}s and seeds (bootstrap of both); `*`: paired "
        f"sign-flip test over {one}s, p < 0.05."
    )


def _draw(folder: Path, name: str, report: Mapping[str, Any], cells: list[Cell]) -> list[Path]:
    figures = []
    if name == "scale":
        figures.append(scale_figure(cells, folder / "scale.png"))
    elif cells:
        figures.append(interval_figure(cells, folder / f"{name}.png"))
    if any(report["curves"].values()):
        figures.append(curves_figure(report["curves"], folder / f"{name}_curves.png"))
    return figures
