"""What a report has beside its scores: tables and figures from its own numbers in the JSON."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluation.evidence_matrices import matrices_figure, serving_figure
from pipeline.evaluation.orthogonality import off_diagonal
from pipeline.evaluation.report import markdown

# Lines of Markdown, and the figures that belong to them.
Sections = tuple[list[str], list[Path]]


def sections(folder: Path, name: str, extra: Mapping[str, Any]) -> Sections:
    """The report's own sections; nothing for one that has none, or has them yet to come."""
    if name == "prompts" and extra.get("cosines"):
        return _prompts(folder, extra)
    if name == "deployment" and extra.get("routing"):
        return _deployment(folder, extra)
    return [], []


def _prompts(folder: Path, extra: Mapping[str, Any]) -> Sections:
    rows = []
    for variant, found in extra["cosines"].items():
        row = [variant]
        for what in ("triggers", "prompts"):
            values = np.abs(off_diagonal(np.array(found[what]))) if what in found else None
            row += ["-", "-"] if values is None else [f"{values.mean():.3f}", f"{values.max():.3f}"]
        bled = extra["bleed"].get(variant)
        row.append("-" if bled is None else f"{_bled(np.array(bled)):.3f}")
        rows.append(row)
    header = [
        "student's prompts",
        "triggers: mean |cos| ↓",
        "max |cos| ↓",
        "whole prompts: mean |cos| ↓",
        "max |cos| ↓",
        "outputs like another effect ↓",
    ]
    lines = [
        "## Orthogonality",
        "",
        "Cosines between effects, of the means of the text encoder's states over a prompt's own "
        "tokens. The last column is the mean of the bleed matrix off its diagonal: the share of "
        "pictures that look like another effect of the bank.",
        "",
        markdown(header, rows),
    ]
    figures = []
    for what in ("triggers", "prompts"):
        some = {v: found[what] for v, found in extra["cosines"].items() if what in found}
        title = f"cosines of the {'triggers' if what == 'triggers' else 'whole student prompts'}"
        figures.append(matrices_figure(some, title, folder / f"prompts_cosines_{what}.png"))
    if extra["bleed"]:
        title = "asked for (row), came out as (column, the last: something else)"
        figures.append(matrices_figure(extra["bleed"], title, folder / "prompts_bleed.png"))
    return lines, figures


def _bled(matrix: "np.ndarray[Any, Any]") -> float:
    """Of all pictures ``[n, n + 1]``, those that look like another of the n effects."""
    among = matrix[:, : len(matrix)]
    return float((among.sum() - np.trace(among)) / len(matrix))


def _deployment(folder: Path, extra: Mapping[str, Any]) -> Sections:
    errors = {row["loras"]: row["errors"] for row in extra["routing"]}
    rows = []
    for row in extra["serving"]:
        wrong = f"{errors[row['loras']]:.3f}" if row["loras"] in errors else "-"
        rows.append(
            [
                row["name"],
                f"{row['stored_bytes'] / 1e6:.2f}",
                str(row["switches"]),
                f"{1000 * row['seconds_per_switch']:.0f}",
                f"{row['seconds_switching']:.1f}",
                f"{row['resident_bytes'] / 1e6:.2f}",
                f"{row['resident_bytes_all'] / 1e6:.2f}",
                "none to make" if row["name"] == "student" else wrong,
            ]
        )
    header = [
        "",
        "MB to store",
        f"switches in {extra['queries']} queries",
        "ms a switch (median)",
        "s of switching",
        "MB resident, one LoRA",
        "MB resident, all of them",
        "routing errors",
    ]
    lines = [
        "## Storage, switches, routing",
        "",
        f"The bank has {extra['effects']} LoRAs; larger ones hold copies of them under other "
        "names, which store and switch as others would but say nothing of routing. Queries ask "
        "for all LoRAs in turn, shuffled; one LoRA is loaded at a time, from its file. Resident "
        "is the transformer with its adapter. The router takes the effect whose prompt is nearest "
        "to the query (the effect's description), as the text encoder sees them.",
        "",
        markdown(header, rows),
    ]
    figure = serving_figure(extra["serving"], extra["routing"], folder / "deployment_serving.png")
    return lines, [figure]
