"""Teachers against student, from the tracker's store: a table and a figure."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline import tracking
from pipeline.evaluation.report import METHOD_ORDER, METRICS, MISSING, cell, markdown
from pipeline.mirror import local_path
from pipeline.problems import InputError, Problem
from pipeline.storage import write_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient

# By method (a column of the tables), all of its values by flat metric name.
Columns = dict[str, dict[str, float]]
# Mean, low and high.
Value = tuple[float, float, float]

COSTS = ("nfe", "ms_per_image")

_COLOURS = {"base": "#9a9a9a", "teacher": "#1f4e8c", "student": "#d1622b"}
_OTHERS = ("#3b8f5a", "#8a5aa8", "#b8932f", "#4aa3b5", "#a83d5a")


def compare(uri: str, experiment: str | None, out: Path | None) -> str:
    """Line up base, teachers, students and baselines of a store; return the Markdown.

    Of each role, effect and recipe hash (and a baseline's name) the latest run counts. With
    `experiment` only that one is read. With `out`, `compare.md` and `compare.png` are saved there.

    Raises:
        InputError: no such store or experiment, or no scores in it.
    """
    columns = line_up(read_store(uri, experiment)[1])
    effects = sorted(
        {key.split("/")[0] for c in columns.values() for key in c if key.split("/")[-1] in METRICS}
        - set(METRICS)
    )
    methods, single = _methods_table(columns), _effects_table(columns, effects)
    text = f"## Methods\n\n{methods}\n\n## Effects\n\n{single}\n"
    if out is not None:
        write_atomic(out / "compare.md", text.encode())
        figure = effects_figure(columns, effects)
        write_atomic(out / "compare.png", lambda path: figure.savefig(path, dpi=110))
    return text


def by_method(
    rows: Sequence[tracking.RunRow],
) -> Iterator[tuple[tuple[str, str], tracking.RunRow, dict[str, float]]]:
    """The runs that count, each as ((method, recipe hash), run, metrics under the method's names).

    A run on the whole collection is a method, a bank of teachers (one run an effect) is one. Rows
    come latest first; of each method, recipe hash and effect the first is taken.
    """
    seen = set()
    for row in rows:
        place = (row.name if row.role == "baseline" else row.role, row.recipe_hash)
        if (*place, row.effect) in seen:
            continue
        seen.add((*place, row.effect))
        metrics = {}
        for key, value in row.metrics.items():
            # What a run on one effect calls its own is, in a bank of teachers, that effect's.
            own = row.effect and "/" not in key and key not in COSTS
            metrics[f"{row.effect}/{key}" if own else key] = value
        yield place, row, metrics


def line_up(rows: Sequence[tracking.RunRow]) -> Columns:
    """Values by method; its recipe hash is in a method's name where the store has several."""
    columns: dict[tuple[str, str], dict[str, float]] = {}
    for place, _, metrics in by_method(rows):
        columns.setdefault(place, {}).update(metrics)
    order = {name: i for i, name in enumerate(METHOD_ORDER)}
    places = sorted(columns, key=lambda p: order.get(p[0], len(order)))
    names = [method for method, _ in places]
    return {
        method if names.count(method) == 1 else f"{method} {mark}": columns[method, mark]
        for method, mark in places
    }


def read_store(uri: str, experiment: str | None) -> "tuple[MlflowClient, list[tracking.RunRow]]":
    """A store's client and its runs, latest first.

    Raises:
        InputError: no such store or experiment, it cannot be read, or there are no scores in it.
    """
    scheme, _, place = uri.partition(":///")
    # MLflow would make a new, empty store there.
    if scheme == "sqlite" and not local_path(place).is_file():
        raise _nothing(uri, "", "no such store")
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        store = tracking.client(uri)
        known = tracking.experiments(store)
        if experiment is not None and experiment not in known:
            names = ", ".join(sorted(known))
            raise _nothing(uri, experiment, f"no such experiment (it has {names})")
        ids = list(known.values()) if experiment is None else [known[experiment]]
        rows = tracking.runs(store, ids)
    except (MlflowException, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise _nothing(uri, "", f"the store cannot be read: {reason}") from error
    if not any(set(row.metrics) & set(METRICS) for row in rows):
        raise _nothing(uri, experiment or "", "no scores of base, teachers or students in it")
    return store, rows


def _nothing(uri: str, experiment: str, what: str) -> InputError:
    remedy = "run `collectionlora run RECIPE` first, or give the address of another store"
    return InputError([Problem(uri, experiment and "experiment", experiment or None, what, remedy)])


def value_of(values: Mapping[str, float], key: str) -> Value | None:
    """A metric with its interval; the mean alone stands in for bounds that were not logged."""
    if key not in values:
        return None
    mean = values[key]
    return mean, values.get(f"{key}_lo", mean), values.get(f"{key}_hi", mean)


def _methods_table(columns: Columns) -> str:
    lines = []
    for method, values in columns.items():
        costs = [f"{values[key]:.0f}" if key in values else MISSING for key in COSTS]
        lines.append([method, *costs, *(_overall(values, key) for key in METRICS)])
    header = ["method", "NFE", "ms/image", *(heading for heading, _ in METRICS.values())]
    return markdown(header, lines)


def _overall(values: Mapping[str, float], metric: str) -> str:
    """The method's own value; for a bank of teachers the mean over its effects, no interval.

    Intervals of single effects do not add up: their photographs are the same.
    """
    value = value_of(values, metric)
    if value is not None:
        return cell(metric, value)
    single = [one for key, one in values.items() if key.endswith(f"/{metric}")]
    digits = METRICS[metric][1]
    return f"{sum(single) / len(single):.{digits}f}" if single else MISSING


def _effects_table(columns: Columns, effects: Sequence[str]) -> str:
    lines = []
    for effect in effects:
        for metric, (heading, _) in METRICS.items():
            found = [value_of(values, f"{effect}/{metric}") for values in columns.values()]
            if any(value is not None for value in found):
                lines.append([effect, heading, *(cell(metric, value) for value in found)])
    return markdown(["effect", "metric", *columns], lines)


def effects_figure(columns: Columns, effects: Sequence[str]) -> Figure:
    """A panel a metric, a line an effect, a dot with its interval a method."""
    used = [m for m in METRICS if any(f"{e}/{m}" in c for c in columns.values() for e in effects)]
    size = (3.1 * len(used) + 1.6, 1.6 + len(effects) * max(0.24, 0.09 * len(columns)))
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(1, len(used), squeeze=False)
    for metric, axes in zip(used, grid[0], strict=True):
        covered = [e for e in effects if any(f"{e}/{metric}" in c for c in columns.values())]
        _panel(axes, metric, columns, covered)
    handles, labels = grid[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _panel(axes: Axes, metric: str, columns: Columns, effects: Sequence[str]) -> None:
    spread = 0.6 / max(1, len(columns))
    others = iter(_OTHERS * len(columns))
    for i, (method, values) in enumerate(columns.items()):
        colour = _COLOURS.get(method) or next(others)
        shift = (i - (len(columns) - 1) / 2) * spread
        found = [(y, value_of(values, f"{effect}/{metric}")) for y, effect in enumerate(effects)]
        there = [(y + shift, *value) for y, value in found if value is not None]
        ys, means, lows, highs = np.array(there, dtype=np.float64).reshape(-1, 4).T
        # A bootstrap interval of skewed scores may, just, miss the mean.
        gaps = np.clip([means - lows, highs - means], 0, None)
        axes.errorbar(means, ys, xerr=gaps, fmt="o", markersize=3.5, color=colour, label=method)
    axes.set_yticks(range(len(effects)), effects, fontsize=8)
    axes.set_ylim(len(effects) - 0.5, -0.5)
    axes.set_title(METRICS[metric][0], fontsize=9, loc="left")
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.6)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
