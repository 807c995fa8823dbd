"""Figures of a bench that are no intervals: matrices side by side, and costs by size of a bank."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.storage import write_atomic

_BANK, _STUDENT = "#d1622b", "#1f4e8c"


def matrices_figure(
    matrices: Mapping[str, Sequence[Sequence[float]]], title: str, path: Path
) -> Path:
    """Matrices of one scale beside each other, each with its name."""
    arrays = {name: np.array(rows, dtype=np.float64) for name, rows in matrices.items()}
    low = min(0.0, *(float(a.min()) for a in arrays.values()))
    figure = Figure(figsize=(3.4 * len(arrays) + 0.6, 3.7), layout="constrained")
    axes = figure.subplots(1, len(arrays), squeeze=False)[0]
    for axis, (name, array) in zip(axes, arrays.items(), strict=True):
        image = axis.imshow(array, vmin=low, vmax=1, cmap="RdBu_r" if low < 0 else "Blues")
        axis.set_title(name, fontsize=9)
        axis.set_xticks([])
        axis.set_yticks([])
    figure.colorbar(image, ax=axes, shrink=0.7)
    figure.suptitle(title, fontsize=10)
    return _save(figure, path)


def serving_figure(
    serving: Sequence[Mapping[str, Any]], routing: Sequence[Mapping[str, Any]], path: Path
) -> Path:
    """Storage, time spent on switching and routing errors, by number of LoRAs."""
    *banks, student = serving
    figure = Figure(figsize=(10.5, 3.0), layout="constrained")
    axes = figure.subplots(1, 3)
    counts = [row["loras"] for row in banks]
    panels = (("stored_bytes", 1e6, "MB to store"), ("seconds_switching", 1.0, "s of switching"))
    for axis, (key, unit, title) in zip(axes, panels, strict=False):
        axis.plot(counts, [row[key] / unit for row in banks], "o-", color=_BANK, label="bank")
        axis.axhline(student[key] / unit, color=_STUDENT, label="student")
        axis.set_title(title, fontsize=9)
        axis.set_ylim(bottom=0)
    errors = [row["errors"] for row in routing]
    axes[2].plot([row["loras"] for row in routing], errors, "o-", color=_BANK)
    axes[2].set_title("share of queries routed wrongly", fontsize=9)
    axes[2].set_ylim(0, 1)
    for axis in axes:
        axis.set_xlabel("LoRAs", fontsize=8)
        axis.grid(color="#e3e6ea")
        axis.tick_params(labelsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    return _save(figure, path)


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    write_atomic(path, lambda place: figure.savefig(place, dpi=130, format="png"))
    return path
