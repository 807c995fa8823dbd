"""The curves of a watched training: score, range, fake-score error by sigma, gap by effect."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes

from pipeline.evaluation.plots import panels
from pipeline.evaluation.smoothing import running_mean

Rows = Sequence[Mapping[str, float]]

_BOLD, _PALE = "#1f4e8c", "#9db4d0"
# A panel: its title, the metric drawn bold (if any), the beginnings of those drawn with it, and
# whether a line is a running mean.
_PANELS: tuple[tuple[str, str | None, str | None, bool], ...] = (
    ("validation score ↓, by effect", "validation/score", "validation/score/", False),
    ("contrast, student / teachers", "validation/contrast", None, False),
    ("latents outside the teachers' range", "range/outside", None, True),
    ("fake score's error, by sigma", None, "loss_fake/sigma_", True),
    ("teacher-fake gap, by stream", None, "teacher_fake_gap/", True),
    ("teacher-fake gap, by effect", None, "teacher_fake_gap/effect/", True),
    ("gradient norm, student", "grad_norm_student", None, True),
    ("gradient norm, fake score", "grad_norm_fake", None, True),
    ("TA-FM loss", "loss_ta_fm", None, True),
)
_NAMED_UP_TO = 6


def watch_curves(rows: Rows, path: Path | str) -> None:
    """Save the panels of a run's rounds (``history.jsonl``); a round without a metric is skipped.

    Raises:
        ValueError: none of the metrics is in any row.
    """
    drawn = [(panel, lines) for panel in _PANELS if (lines := _lines(rows, panel))]
    if not drawn:
        raise ValueError("there is nothing to draw")
    figure, every = panels(len(drawn), 4.2, 2.7)
    for axes, ((title, bold, _, mean), lines) in zip(every, drawn, strict=True):
        _panel(axes, lines, bold, mean)
        axes.set_title(title, fontsize=9, loc="left")
        axes.grid(axis="y", color="#e9e9e9", linewidth=0.6)
    figure.savefig(Path(path), dpi=110)


Line = tuple[list[float], list[float]]


def _lines(rows: Rows, panel: tuple[str, str | None, str | None, bool]) -> dict[str, Line]:
    _, bold, prefix, _ = panel
    found: dict[str, Line] = {}
    for row in rows:
        for key, value in row.items():
            rest = key.removeprefix(prefix) if prefix and key.startswith(prefix) else None
            if key == bold or (rest and "/" not in rest):
                steps, values = found.setdefault(rest or key, ([], []))
                if math.isfinite(value):
                    steps.append(row["round"])
                    values.append(value)
    return found


def _panel(axes: Axes, lines: Mapping[str, Line], bold: str | None, mean: bool) -> None:
    others = [name for name in sorted(lines) if name != bold]
    colours = colormaps["viridis"]
    for i, name in enumerate(others):
        steps, values = lines[name]
        colour = _PALE if bold else colours(i / max(1, len(others) - 1) * 0.9)
        label = name if len(others) <= _NAMED_UP_TO and not bold else None
        axes.plot(
            steps, running_mean(values, 20) if mean else values, color=colour, lw=1.2, label=label
        )
    if bold is not None and bold in lines:
        steps, values = lines[bold]
        if mean:
            axes.plot(steps, values, color=_PALE, lw=0.6)
        axes.plot(steps, running_mean(values, 20) if mean else values, color=_BOLD, lw=1.8)
        if bold == "validation/score" and values:
            best = min(range(len(values)), key=values.__getitem__)
            axes.plot(steps[best], values[best], "o", color="#d1622b", ms=6, label="best")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False)
    every = [value for _, values in lines.values() for value in values]
    if every and min(every) > 0 and max(every) > 10 * min(every):
        axes.set_yscale("log")
