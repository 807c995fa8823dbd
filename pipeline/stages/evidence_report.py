"""Draw a bench's report from its JSON alone: tables in Markdown, figures in PNG."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.evaluation.evidence import Cell, from_json, paired_table, table
from pipeline.evaluation.evidence_plots import curves_figure, interval_figure, scale_figure
from pipeline.storage import write_atomic

TITLES = {
    "main": "The student against what one would do instead",
    "ablation": "What each idea is worth",
    "scale": "By number of effects",
}
# Whom the others are held against.
STUDENT = {"main": "student", "ablation": "all"}


def write_evidence(folder: Path, name: str) -> None:
    """Write ``<name>.md`` and its figures beside ``<name>.json``, from what that holds.

    Raises:
        ValueError: there is no such report in the folder.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise ValueError(f"{path}: no such report; `collectionlora bench` makes it")
    report = json.loads(path.read_text(encoding="utf-8"))
    cells = from_json(report["cells"])
    figures = _draw(folder, name, report, cells)
    lines = [
        f"# {TITLES[name]}",
        "",
        _where(report),
        "",
        table(cells, report["costs"], _student(name)),
    ]
    if name in STUDENT and any(c.method == STUDENT[name] for c in cells):
        lines += ["", "## Paired differences", "", paired_table(cells, STUDENT[name])]
    lines += ["", *(f"![{figure.stem}]({figure.name})" for figure in figures), ""]
    write_atomic(folder / f"{name}.md", "\n".join(lines).encode())


def _student(name: str) -> str:
    return STUDENT.get(name, "")


def _where(report: Mapping[str, Any]) -> str:
    machine, recipe = report["environment"], report["recipe"]
    seeds = sorted({c["seed"] for c in report["cells"] if c["seed"] is not None})
    effects = {c["effect"] for c in report["cells"] if not c["effect"].startswith("general:")}
    return (
        f"Recipe {recipe['name']}, {report['date']}, {machine['cpu_count']} CPUs, "
        f"{machine['platform']}, commit {machine['git_commit']}. {len(effects)} effects, training "
        f"seeds {seeds}, {recipe['evaluate']['photographs']} held-out pictures an effect. Means "
        "with 95 % intervals over effects and seeds (bootstrap of both); `*`: paired sign-flip "
        "test over effects, p < 0.05."
    )


def _draw(folder: Path, name: str, report: Mapping[str, Any], cells: list[Cell]) -> list[Path]:
    figures = []
    if name == "scale":
        figures.append(scale_figure(cells, folder / "scale.png"))
    else:
        figures.append(interval_figure(cells, folder / f"{name}.png"))
    if any(report["curves"].values()):
        figures.append(curves_figure(report["curves"], folder / f"{name}_curves.png"))
    return figures
