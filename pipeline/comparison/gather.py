"""What a comparison is of: methods with their numbers, pictures and curves, from MLflow stores.

A method is one run on the whole collection (base, student, baseline), or a bank of teachers: one
run an effect. Of each method and recipe hash the latest run counts.
"""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import tracking
from pipeline.compare import COSTS, Value, by_method, read_store, value_of
from pipeline.evaluation.report import METHOD_ORDER, METRICS
from pipeline.evaluation.strips import Strip, read_strip, strip_folder
from pipeline.mirror import local_path
from pipeline.problems import InputError, Problem

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Curves by their names in the tracker, with headings.
CURVES = {
    "train/validation/score": "validation score ↓",
    "train/loss_fake": "fake-score loss",
    "train/loss_ta_fm": "TA-FM loss",
    "train/loss_dmd_bs": "DMD_BS loss",
    "train/loss_dmd_ts": "DMD_TS loss",
    "train/teacher_fake_gap": "teacher-fake gap",
    "train/grad_norm_student": "gradient norm, student",
    "train/range/outside": "latents outside the teachers' range",
}


@dataclass(frozen=True)
class Store:
    """A tracker's address, and what a person calls it."""

    uri: str
    label: str


@dataclass
class Column:
    """A method as the page shows it.

    metrics: flat names, as ``run_metrics`` gives them; strips, sources: by effect; curves: by
    metric, (round, value); bleed: (effects, columns, rows of shares), or None.
    """

    name: str
    role: str
    recipe_hash: str
    run_ids: tuple[str, ...]
    started: int
    metrics: dict[str, float] = field(default_factory=dict)
    strips: dict[str, Strip] = field(default_factory=dict)
    sources: dict[str, Strip] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    bleed: tuple[list[str], list[str], list[list[float]]] | None = None

    @property
    def effects(self) -> list[str]:
        """The effects that it has scores of, in order."""
        found = (key.split("/") for key in self.metrics)
        return list(dict.fromkeys(k[0] for k in found if len(k) == 2 and k[1] in METRICS))


def stores_of(places: Sequence[str]) -> list[Store]:
    """Stores of output folders and tracker addresses.

    Raises:
        InputError: a folder without a store.
    """
    stores = []
    for place in places:
        if "://" in place or place.startswith("sqlite:"):
            stores.append(Store(place, _short(place)))
            continue
        folder = local_path(place)
        if not (folder / "mlflow.db").is_file():
            remedy = "give the output folder of a finished `collectionlora run`, or a tracker's uri"
            raise InputError([Problem(place, "--runs", None, "no mlflow.db in it", remedy)])
        stores.append(Store(tracking.default_uri(folder), folder.name or str(folder)))
    return stores


def gather(stores: Sequence[Store], experiment: str | None = None) -> list[Column]:
    """All methods of the stores, with their pictures and curves, base and teachers first.

    A base or a bank of teachers with the same scores as one that came before is left out.

    Raises:
        InputError: a store that cannot be read, or has no scores.
    """
    columns: list[Column] = []
    for store in stores:
        columns += [
            replace(column, name=f"{column.name} · {store.label}") if len(stores) > 1 else column
            for column in _of_store(store, experiment)
        ]
    kept: list[Column] = []
    for column in columns:
        alike = [k for k in kept if k.role == column.role in ("base", "teacher")]
        if not any(_scores(k) == _scores(column) for k in alike):
            kept.append(column)
    order = {name: i for i, name in enumerate(METHOD_ORDER)}
    kept.sort(key=lambda c: (order.get(c.role, len(order)), c.started))
    return _named(kept)


def _of_store(store: Store, experiment: str | None) -> list[Column]:
    client, rows = read_store(store.uri, experiment)
    columns: dict[tuple[str, str], Column] = {}
    for place, row, metrics in by_method(rows):
        new = Column(place[0], row.role, row.recipe_hash, (), row.started)
        column = columns.setdefault(place, new)
        column.run_ids += (row.run_id,)
        column.metrics |= metrics
        _pictures(client, row.run_id, column)
        if row.role == "student":
            _training(client, row.run_id, column)
    return [c for c in columns.values() if c.effects]


def _pictures(client: "MlflowClient", run_id: str, column: Column) -> None:
    """A run's strips; runs of before there were any have none."""
    for of_sources, into in ((False, column.strips), (True, column.sources)):
        folder = strip_folder(of_sources)
        if not client.list_artifacts(run_id, folder):
            continue
        with tempfile.TemporaryDirectory() as place:
            found = Path(client.download_artifacts(run_id, folder, place))
            for path in sorted(found.glob("*.png")):
                into[path.stem] = read_strip(path)


def _training(client: "MlflowClient", run_id: str, column: Column) -> None:
    """A student's curves, and its bleed matrix from its parent's report."""
    for key in CURVES:
        points = tracking.history(client, run_id, key)
        if points:
            column.curves[key] = points
    parent = client.get_run(run_id).data.tags.get("mlflow.parentRunId")
    if parent and any(
        a.path == "report/bleed.json" for a in client.list_artifacts(parent, "report")
    ):
        with tempfile.TemporaryDirectory() as place:
            data = json.loads(
                Path(client.download_artifacts(parent, "report/bleed.json", place)).read_bytes()
            )
        if "student" in data["methods"]:
            column.bleed = data["effects"], data["columns"], data["methods"]["student"]


def _scores(column: Column) -> dict[str, float]:
    return {k: v for k, v in column.metrics.items() if k.split("/")[-1] not in COSTS}


def _named(columns: Sequence[Column]) -> list[Column]:
    """Names of their own: the recipe's hash where two would have the same."""
    names = [c.name for c in columns]
    named = [
        replace(c, name=f"{c.name} {_brief(c.recipe_hash)}") if names.count(c.name) > 1 else c
        for c in columns
    ]
    labels = [c.name.partition(" · ")[0] for c in named]
    return [
        replace(c, name=label) if labels.count(label) == 1 and c.role in ("base", "teacher") else c
        for c, label in zip(named, labels, strict=True)
    ]


def find(columns: Sequence[Column], wanted: str) -> Column:
    """The student that is meant by a name, a run's id or a recipe hash, or their beginnings.

    Raises:
        InputError: none or several.
    """
    students = [c for c in columns if c.role not in ("base", "teacher")]
    exact = [c for c in students if wanted in (c.name, c.recipe_hash, *c.run_ids)]
    label = [c for c in students if c.name.partition(" · ")[2] == Path(wanted).name]
    begun = [
        c
        for c in students
        if any(t.startswith(wanted) for t in (c.recipe_hash, *c.run_ids, c.name))
    ]
    for found in (exact, label, begun):
        if len(found) == 1:
            return found[0]
    names = ", ".join(f"{c.name} ({c.recipe_hash})" for c in students) or "none"
    what = f"not one student of those compared: {names}"
    remedy = "give a name, an output folder's name, a recipe hash or a run id"
    raise InputError([Problem("--against", wanted, wanted, what, remedy)])


def mean_value(column: Column, metric: str) -> Value | None:
    """A method's own value; of a bank of teachers the mean over effects, without an interval."""
    own = value_of(column.metrics, metric)
    if own is not None:
        return own
    single = [v for k, v in column.metrics.items() if k.endswith(f"/{metric}")]
    mean = sum(single) / len(single) if single else None
    return None if mean is None else (mean, mean, mean)


def _brief(mark: str) -> str:
    """A recipe hash cut short; a bench's report and seed, which follow it, whole."""
    recipe, dash, rest = mark.partition("-")
    return f"{recipe[:6]}{dash}{rest}"


def _short(uri: str) -> str:
    if uri.startswith("sqlite:"):
        return Path(uri).parent.name or uri
    return uri.partition("://")[2].rpartition("@")[2].partition("/")[0] or uri
