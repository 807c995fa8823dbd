"""Figures of a bench: intervals by method, scores by number of effects, training curves."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.evaluation.evidence import METRICS, Cell, Interval, summarise
from pipeline.storage import write_atomic

_INK, _POINT, _MUTED = "#222222", "#1f4e8c", "#9aa7b8"
_LINES = ("#1f4e8c", "#d1622b", "#3b8f5a", "#8a5aa8", "#b8932f", "#4aa3b5", "#a83d5a", "#777777")
CURVES = {
    "loss_ta_fm": "TA-FM loss",
    "loss_fake": "fake-score loss",
    "grad_norm_student": "gradient norm of the student",
}


def interval_figure(cells: Sequence[Cell], path: Path) -> Path:
    """A panel a metric, a row a method: mean and 95 % interval."""
    methods = list(dict.fromkeys(c.method for c in cells))
    metrics = _metrics(cells)
    figure = Figure(figsize=(3.1 * len(metrics), 0.34 * len(methods) + 1.0), layout="constrained")
    axes = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axis, metric in zip(axes, metrics, strict=True):
        for row, method in enumerate(methods):
            found = summarise(cells, method, metric)
            if found is not None:
                axis.plot([found.lo, found.hi], [row, row], color=_POINT, lw=2)
                axis.plot(found.mean, row, "o", color=_POINT, ms=5)
        axis.set_title(METRICS[metric][0], fontsize=9, color=_INK)
        axis.grid(axis="x", color="#e3e6ea")
        axis.tick_params(labelsize=8)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].invert_yaxis()
    return _save(figure, path)


def scale_figure(cells: Sequence[Cell], path: Path) -> Path:
    """A panel a metric, a line a method, by number of effects; methods are ``NAME @ COUNT``."""
    metrics = _metrics(cells)
    figure = Figure(figsize=(3.1 * len(metrics), 2.9), layout="constrained")
    axes = figure.subplots(1, len(metrics), squeeze=False)[0]
    names = list(dict.fromkeys(c.method.split(" @ ")[0] for c in cells))
    sizes = sorted({int(c.method.split(" @ ")[1]) for c in cells})
    for axis, metric in zip(axes, metrics, strict=True):
        for i, (colour, name) in enumerate(zip(_LINES, names, strict=False)):
            points = _by_count(cells, name, metric)
            if points:
                counts = sorted(points)
                # Of one size there are no lines to follow: side by side, with their intervals.
                x = counts if len(sizes) > 1 else [counts[0] + (i - len(names) / 2) / 100]
                lo, hi = [points[n].lo for n in counts], [points[n].hi for n in counts]
                axis.plot(x, [points[n].mean for n in counts], "o-", color=colour, label=name, ms=4)
                axis.fill_between(x, lo, hi, color=colour, alpha=0.12, lw=0)
                if len(sizes) == 1:
                    axis.vlines(x, lo, hi, color=colour, lw=1)
        axis.set_title(METRICS[metric][0], fontsize=9, color=_INK)
        axis.set_xlabel("effects", fontsize=8)
        axis.set_xticks(sizes)
        axis.grid(color="#e3e6ea")
        axis.tick_params(labelsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=7, frameon=False)
    return _save(figure, path)


def curves_figure(curves: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> Path:
    """A panel a measure, a line a run; runs of one variant (``NAME, seed N``) share a colour."""
    names = [n for n in CURVES if any(n in point for run in curves.values() for point in run)]
    figure = Figure(figsize=(4.2 * len(names), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    variants = list(dict.fromkeys(run.split(", seed")[0] for run in curves))
    drawn: dict[str, Line2D] = {}
    for axis, name in zip(axes, names, strict=True):
        for run, points in curves.items():
            variant = run.split(", seed")[0]
            colour = _LINES[variants.index(variant) % len(_LINES)]
            shown = [(p["round"], p[name]) for p in points if name in p]
            # A switched-off loss is a flat zero: no curve.
            if any(value for _, value in shown):
                (drawn[variant],) = axis.plot(*np.array(shown).T, color=colour, lw=1.1, alpha=0.8)
        axis.set_title(CURVES[name], fontsize=9, color=_INK)
        axis.set_xlabel("round", fontsize=8)
        axis.set_yscale("log")
        axis.grid(color="#e3e6ea")
        axis.tick_params(which="both", labelsize=8)
    # No panel has all: a loss that is switched off has no line.
    named = [v for v in variants if v in drawn]
    lines = [drawn[v] for v in named]
    figure.legend(lines, named, loc="outside right upper", fontsize=7, frameon=False)
    return _save(figure, path)


def _metrics(cells: Sequence[Cell]) -> list[str]:
    return [m for m in METRICS if any(m in c.scores for c in cells)]


def _by_count(cells: Sequence[Cell], name: str, metric: str) -> dict[int, Interval]:
    points = {}
    for method in dict.fromkeys(c.method for c in cells):
        before, _, count = method.partition(" @ ")
        found = summarise(cells, method, metric) if before == name else None
        if found is not None:
            points[int(count)] = found
    return points


def _save(figure: Figure, path: Path) -> Path:
    FigureCanvasAgg(figure)
    write_atomic(path, lambda place: figure.savefig(place, dpi=130, format="png"))
    return path
