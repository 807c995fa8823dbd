"""A bench's scores in MLflow: a run a report, below it one a contender and training seed.

From a report's JSON alone, under the names that every other run uses (``fidelity``,
``fidelity_lo``, ``<effect>/fidelity``, ``nfe``), so that MLflow lines them up.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import mirror
from pipeline.config import Recipe, recipe_hash
from pipeline.evaluation.evidence import METRICS, Cell, from_json, summarise
from pipeline.storage import content_key, write_atomic
from pipeline.tracking import Role, Tracker


def publish_evidence(recipe: Recipe, tracking: Mapping[str, str], output: Path, name: str) -> None:
    """Publish ``bench/<name>.json``; nothing if these numbers were published to this store."""
    folder = output / "bench"
    report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    key = content_key(report["cells"], report["costs"], report["extra"], tracking["uri"])
    seal = output / "cache" / "published" / name
    if mirror.fetch(seal) and seal.read_text() == key:
        return
    # Each report has a run of its own: without its name, runs of one recipe are one run.
    mark = f"{recipe_hash(recipe)}-{name}"
    tracker = Tracker.open(tracking["uri"], tracking["experiment"], output)
    settings = recipe.model_dump(mode="json")
    parent = tracker.parent(f"{recipe.name} bench {name}", mark, settings)
    for path in sorted(folder.glob(f"{name}*")):
        tracker.log_artifact(parent, path, "report")
    cells = from_json(report["cells"])
    for method, seed in dict.fromkeys((c.method, c.seed) for c in cells):
        title = method if seed is None else f"{method}, seed {seed}"
        # Runs of one role and mark are one method to whoever compares, the latest of them.
        own = mark if seed is None else f"{mark}-seed{seed}"
        run = tracker.child(parent, title, role_of(method), None, own)
        mine = [c for c in cells if (c.method, c.seed) == (method, seed)]
        tracker.log_metrics(run, contender_metrics(mine, report["costs"].get(method, {})))
        tracker.finish(run)
    tracker.finish(parent)
    write_atomic(seal, key.encode())


def contender_metrics(cells: Sequence[Cell], costs: Mapping[str, float]) -> dict[str, float]:
    """One contender's numbers of one seed as flat names: over all effects, then each effect's."""
    flat: dict[str, float] = {}
    for metric in METRICS:
        found = summarise(cells, cells[0].method, metric)
        if found is not None:
            flat |= {metric: found.mean, f"{metric}_lo": found.lo, f"{metric}_hi": found.hi}
    for cell in cells:
        flat |= {f"{_plain(cell.effect)}/{metric}": v for metric, v in cell.scores.items()}
    return flat | {name: float(value) for name, value in costs.items()}


def role_of(method: str) -> Role:
    """What MLflow's runs are told apart by: the three that every run has, or a baseline."""
    roles: dict[str, Role] = {"base": "base", "teacher": "teacher", "student": "student"}
    return roles.get(method, "baseline")


def _plain(name: str) -> str:
    """An effect's name (or a pair's, or an instruction's) as MLflow allows in a metric's."""
    return "".join(c if c.isalnum() or c in "_-. " else " " for c in name).strip()
