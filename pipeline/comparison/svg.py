"""Small line charts as inline SVG, so that a page needs no script and scales with its column."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from pipeline.evaluation.smoothing import running_mean

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 320, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 22
_MOST_POINTS = 240


def line_chart(series: Mapping[str, Points], colours: Mapping[str, str], label: str) -> str:
    """An ``<svg>`` of lines by name; logarithmic where values span more than a factor of 20.

    Values that are not finite break no line, they are left out. ``label`` is for screen readers.
    """
    clean = {
        name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()
    }
    every = [point for points in clean.values() for point in points]
    if not every:
        return ""
    xs, ys = [x for x, _ in every], [y for _, y in every]
    logarithmic = min(ys) > 0 and max(ys) > 20 * min(ys)

    def scaled(value: float) -> float:
        return math.log10(value) if logarithmic else value

    low, high = scaled(min(ys)), scaled(max(ys))
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)
    left, right = min(xs), max(max(xs), min(xs) + 1)

    def place(x: float, y: float) -> str:
        across = _LEFT + (x - left) / (right - left) * (_WIDTH - _LEFT - _RIGHT)
        down = _TOP + (high - scaled(y)) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)
        return f"{across:.1f},{down:.1f}"

    name = escape(label, quote=True)
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{name}">']
    for share in (0, 0.5, 1):
        value = low + share * (high - low)
        y = _TOP + (1 - share) * (_HEIGHT - _TOP - _BOTTOM)
        shown = _number(10**value if logarithmic else value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}" class="grid"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 3.5}" text-anchor="end">{shown}</text>')
    for x, anchor in ((left, "start"), (right, "end")):
        across = _LEFT if anchor == "start" else _WIDTH - _RIGHT
        parts.append(
            f'<text x="{across}" y="{_HEIGHT - 6}" text-anchor="{anchor}">{_number(x)}</text>'
        )
    for name, points in clean.items():
        if points:
            few = thinned(points)
            for line, opacity in ((few, 0.25), (smoothed(few), 1)):
                path = " ".join(place(x, y) for x, y in line)
                parts.append(
                    f'<polyline points="{path}" style="stroke:{colours[name]};opacity:{opacity}">'
                    f"<title>{escape(name)}</title></polyline>"
                )
    return "".join([*parts, "</svg>"])


def thinned(points: Points) -> list[tuple[float, float]]:
    """At most 240 points, each the mean of its neighbours."""
    width = math.ceil(len(points) / _MOST_POINTS)
    chunks = [points[i : i + width] for i in range(0, len(points), width)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def smoothed(points: Points) -> list[tuple[float, float]]:
    """Their running mean over a tenth of the points."""
    means = running_mean([y for _, y in points], 10)
    return [(x, mean) for (x, _), mean in zip(points, means, strict=True)]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
