"""One HTML page that stands alone: inline CSS, pictures as data URIs, no script, no network."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pipeline.compare import value_of
from pipeline.comparison.gather import CURVES, Column, mean_value
from pipeline.comparison.regressions import differences, higher_is_better, judge, regressions
from pipeline.comparison.svg import line_chart
from pipeline.evaluation.report import METRICS, MISSING

_COLOURS = {"base": "#8a8f98", "teacher": "#2f6db5", "student": "#d1622b"}
_OTHERS = ("#2f8f5b", "#8656b3", "#b38a1d", "#2d9db0", "#b03a63", "#6b7a2a", "#c2477f")
# A picture's side on the page; larger ones are made smaller.
_SIDE = 192
_COSTS = (
    ("NFE", "nfe", "{:.0f}"),
    ("ms a picture", "ms_per_image", "{:.0f}"),
    ("s a round", "train/seconds_update", "{:.2f}"),
    ("forwards, student", "train/forwards_student_group", "{:.1f}"),
    ("forwards, teachers", "train/forwards_teacher_pool", "{:.1f}"),
)


@dataclass(frozen=True)
class Cell:
    """A number with its interval, how it is marked, and where it lies between worst and best."""

    text: str
    interval: str = ""
    mark: str = ""
    best: bool = False


def render(columns: Sequence[Column], earlier: Column | None, title: str) -> str:
    """The page. ``earlier``: the student whose regressions are flagged in the others."""
    colours = _colours(columns)
    effects = list(dict.fromkeys(e for c in columns for e in c.effects))
    found = {
        c.name: differences(c, earlier)
        for c in columns
        if earlier is not None and c is not earlier and c.role not in ("base", "teacher")
    }
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html").render(
        title=title,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        columns=columns,
        colours=colours,
        metrics={m: heading for m, (heading, _) in METRICS.items() if _used(columns, m)},
        overall=[_row(columns, "", m, earlier) for m in METRICS if _used(columns, m)],
        effects=[_effect(columns, effect, earlier) for effect in effects],
        costs=_costs(columns),
        curves=_curves(columns, colours),
        bleeds=[(c.name, _bleed(c.bleed)) for c in columns if c.bleed is not None],
        earlier=earlier,
        regressions={name: regressions(each) for name, each in found.items()},
        headings={m: heading for m, (heading, _) in METRICS.items()},
        digits={m: digits for m, (_, digits) in METRICS.items()},
    )


def _colours(columns: Sequence[Column]) -> dict[str, str]:
    others = iter(_OTHERS * len(columns))
    taken: set[str] = set()
    colours = {}
    for column in columns:
        first = _COLOURS.get(column.role)
        colours[column.name] = first if first and first not in taken else next(others)
        taken.add(colours[column.name])
    return colours


def _used(columns: Sequence[Column], metric: str) -> bool:
    return any(k == metric or k.endswith(f"/{metric}") for c in columns for k in c.metrics)


def _row(
    columns: Sequence[Column], effect: str, metric: str, earlier: Column | None
) -> dict[str, Any]:
    """A metric by column."""
    key = f"{effect}/{metric}"
    values = [value_of(c.metrics, key) if effect else mean_value(c, metric) for c in columns]
    digits = METRICS[metric][1]
    sign = 1 if higher_is_better(metric) else -1
    students = [
        v[0]
        for c, v in zip(columns, values, strict=True)
        if v and c.role not in ("base", "teacher")
    ]
    best = max((sign * value for value in students), default=None) if len(students) > 1 else None
    then = None
    if earlier is not None:
        then = value_of(earlier.metrics, key if effect else metric)
    cells = []
    for column, value in zip(columns, values, strict=True):
        if value is None:
            cells.append(Cell(MISSING))
            continue
        mean, low, high = value
        mark = ""
        if then and column is not earlier and column.role not in ("base", "teacher"):
            verdict = judge(metric, value, then)
            mark = "" if verdict == "same or better" else verdict
        interval = "" if low == high == mean else f"{low:.{digits}f} to {high:.{digits}f}"
        trained = column.role not in ("base", "teacher")
        cells.append(Cell(f"{mean:.{digits}f}", interval, mark, trained and sign * mean == best))
    return {"heading": METRICS[metric][0], "cells": cells}


def _effect(columns: Sequence[Column], effect: str, earlier: Column | None) -> dict[str, Any]:
    used = [m for m in METRICS if any(f"{effect}/{m}" in c.metrics for c in columns)]
    rows = [_row(columns, effect, metric, earlier) for metric in used]
    marks = {cell.mark for row in rows for cell in row["cells"]}
    return {
        "name": effect,
        "rows": rows,
        "regressed": "regression" in marks,
        "sheet": _sheet(columns, effect),
    }


def _sheet(columns: Sequence[Column], effect: str) -> list[tuple[str, list[str | None]]]:
    """Rows (label, pictures) of a contact sheet: the same photograph in the same column."""
    source = next((c.sources[effect] for c in columns if effect in c.sources), None)
    if source is None:
        return []
    names = source.photographs
    rows: list[tuple[str, list[str | None]]] = [("source", [_uri(p) for p in source.pictures])]
    for column in columns:
        if effect in column.strips:
            strip = column.strips[effect]
            by_name = dict(zip(strip.photographs, strip.pictures, strict=True))
            pictures = [_uri(by_name[n]) if n in by_name else None for n in names]
            rows.append((column.name, pictures))
    return rows


def _uri(picture: Image.Image) -> str:
    small = picture.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, format="WEBP", quality=88, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _costs(columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    rows = []
    for heading, key, form in _COSTS:
        if any(key in c.metrics for c in columns):
            cells = [form.format(c.metrics[key]) if key in c.metrics else MISSING for c in columns]
            rows.append((heading, cells))
    return rows


def _curves(columns: Sequence[Column], colours: dict[str, str]) -> list[tuple[str, Markup]]:
    charts = []
    for key, heading in CURVES.items():
        series = {c.name: c.curves[key] for c in columns if key in c.curves}
        if series:
            # Our own SVG, with every name in it escaped.
            charts.append((heading, Markup(line_chart(series, colours, heading))))
    return charts


def _bleed(bleed: tuple[list[str], list[str], list[list[float]]]) -> dict[str, Any]:
    """A heat map's rows; colour by share, numbers where there is room for them."""
    effects, names, shares = bleed
    rows = [
        (effect, [(share, f"{share:.2f}" if share >= 0.005 else "") for share in row])
        for effect, row in zip(effects, shares, strict=True)
    ]
    right = sum(shares[i][i] for i in range(len(effects))) / max(1, len(effects))
    return {"columns": names, "rows": rows, "numbers": len(effects) <= 12, "right": right}
