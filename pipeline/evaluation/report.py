"""The report of an evaluation: typed scores in, `report.json` and its tables out.

Pure: no Ray, no torch, no files but the one that `write_report` is given. The schema is that of
issue 2; `run_metrics` gives the same numbers as flat names for the tracker.
"""

import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import bootstrap_mean
from pipeline.storage import write_atomic

Report = dict[str, Any]

# The metrics' names everywhere (report, tracker, figures), with their headings and decimals.
METRICS: dict[str, tuple[str, int]] = {
    "fidelity": ("fidelity, dB ↑", 2),
    "texture_distance": ("texture distance ↓", 3),
    "bad_case_rate": ("bad-case rate ↓", 3),
    "subject": ("subject kept ↑", 3),
}
METHOD_ORDER = ("base", "teacher", "student")
MISSING = "-"

_COUNTERS = {"forwards_per_student_update", "seconds_per_round", "student_wait_share"}
_FORWARDS = {"student_group", "teacher_pool"}


@dataclass(frozen=True)
class ImageScore:
    """The scores of one output image.

    `method` is 'base', 'teacher', 'student' or a baseline's name; `draw` tells apart several
    outputs for one photograph; `bad_case` is 1 when `happened` is not the effect asked for.
    A score that does not exist for the effect's family is None.
    """

    method: str
    effect: str
    family: str
    photograph: str
    draw: int
    fidelity: float | None
    texture_distance: float | None
    bad_case: float
    subject: float
    happened: str


@dataclass(frozen=True)
class MethodCost:
    """What a method costs: network evaluations and milliseconds for one image."""

    nfe: int
    ms_per_image: float


def build_report(
    scores: Sequence[ImageScore],
    costs: Mapping[str, MethodCost],
    counters: Mapping[str, Any],
    environment: Mapping[str, Any],
    bootstrap: int,
    seed: int,
) -> Report:
    """The whole report, in the schema of issue 2.

    Means are over images, 95 % intervals from `bootstrap` resamples of whole photographs. A
    metric that no image has is left out: fidelity is for tone and layout effects (one truth),
    texture distance for textured ones (truth is a distribution), whatever the scores hold.

    Raises ValueError: no scores, an image scored twice, a method without its cost or the other
    way round, or counters that are not those of the schema.
    """
    methods = _ordered(score.method for score in scores)
    if not methods:
        raise ValueError("a report needs at least one score")
    if set(methods) != set(costs):
        raise ValueError(f"scores are of {sorted(methods)}, costs of {sorted(costs)}")
    keys = [(s.method, s.effect, s.photograph, s.draw) for s in scores]
    if len(set(keys)) != len(keys):
        twice = next(key for i, key in enumerate(keys) if key in keys[:i])
        raise ValueError(f"scored twice (method, effect, photograph, draw): {twice}")
    report: Report = {"methods": {}, "counters": _checked_counters(counters)}
    for method in methods:
        mine = [s for s in scores if s.method == method]
        effects = {
            effect: _estimates([s for s in mine if s.effect == effect], bootstrap, seed)
            for effect in dict.fromkeys(s.effect for s in mine)
        }
        report["methods"][method] = {
            "nfe": int(costs[method].nfe),
            "ms_per_image": float(costs[method].ms_per_image),
            "metrics": _estimates(mine, bootstrap, seed),
            "effects": effects,
        }
    report["environment"] = dict(environment)
    return report


def run_metrics(report: Report, method: str, effect: str | None = None) -> dict[str, float]:
    """A method's numbers as flat names, the same in every run, so that a tracker lines them up.

    `<metric>`, `<metric>_lo` and `<metric>_hi` are over all effects, or of `effect` alone (a
    teacher's run); `<effect>/<metric>` and so on are there for each effect covered.
    """
    block = report["methods"][method]
    effects = block["effects"] if effect is None else {effect: block["effects"][effect]}
    flat = {"nfe": float(block["nfe"]), "ms_per_image": float(block["ms_per_image"])}
    overall = block["metrics"] if effect is None else effects[effect]
    for prefix, metrics in [("", overall), *((f"{name}/", m) for name, m in effects.items())]:
        for key, entry in metrics.items():
            flat[f"{prefix}{key}"] = entry["mean"]
            flat[f"{prefix}{key}_lo"], flat[f"{prefix}{key}_hi"] = entry["ci95"]
    judges = block.get("judges", {})
    judged = judges.get("metrics", {}) if effect is None else judges.get("effects", {}).get(effect)
    for key, entry in (judged or {}).items():
        flat[f"judges/{key}"] = entry["mean"]
        flat[f"judges/{key}_lo"], flat[f"judges/{key}_hi"] = entry["ci95"]
    return flat


def markdown_table(report: Report) -> str:
    """Methods as rows: cost, then each metric's mean with its 95 % interval."""
    used = [key for key in METRICS if any(key in m["metrics"] for m in report["methods"].values())]
    rows = [
        [
            method,
            str(block["nfe"]),
            f"{block['ms_per_image']:.0f}",
            *(_cell(key, block["metrics"]) for key in used),
        ]
        for method, block in report["methods"].items()
    ]
    return markdown(["method", "NFE", "ms/image", *(METRICS[key][0] for key in used)], rows)


def effects_table(report: Report) -> str:
    """A row for each effect and metric, methods as columns, means with their 95 % intervals."""
    blocks = report["methods"]
    rows = []
    for effect in dict.fromkeys(name for block in blocks.values() for name in block["effects"]):
        entries = [block["effects"].get(effect, {}) for block in blocks.values()]
        for key, (heading, _) in METRICS.items():
            if any(key in e for e in entries):
                rows.append([effect, heading, *(_cell(key, e) for e in entries)])
    return markdown(["effect", "metric", *blocks], rows)


def cell(metric: str, value: tuple[float, float, float] | None) -> str:
    """`27.10 [26.52, 27.80]`: a mean and its interval, or a dash when there is none."""
    if value is None:
        return MISSING
    digits = METRICS[metric][1]
    mean, lo, hi = (f"{number:.{digits}f}" for number in value)
    return f"{mean} [{lo}, {hi}]"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns padded, so that it also reads well in a terminal."""
    lines = [[text.replace("|", "\\|") for text in line] for line in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = [
        "| " + " | ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    ]
    return "\n".join([padded[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *padded[1:]])


def bleed(scores: Sequence[ImageScore], method: str, names: Sequence[str]) -> NDArray[np.float64]:
    """(n, n + 1) shares: of images asked for effect `row`, how many came out as `column`.

    The last column is everything else: the unchanged photograph, or an effect not in `names`.
    A row sums to 1, or to 0 when the method was not asked for that effect.
    """
    index = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names) + 1))
    for score in scores:
        if score.method == method and score.effect in index:
            counts[index[score.effect], index.get(score.happened, len(names))] += 1
    return np.asarray(counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))


def write_report(report: Report, path: Path | str) -> None:
    """Save the report as JSON, whole or not at all. Raises ValueError on NaN or infinity."""
    text = json.dumps(report, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    write_atomic(path, text.encode())


def environment() -> dict[str, Any]:
    """Where the numbers were made: machine, Python, package versions, git commit if any."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "packages": {name: _version(name) for name in ("torch", "ray", "diffusers", "peft")},
        "git_commit": _git_commit(Path(__file__).resolve().parents[2]),
    }


def _ordered(methods: Iterable[str]) -> list[str]:
    """Base, teacher, student, then baselines in the order in which they came."""
    found = list(dict.fromkeys(methods))
    return [m for m in METHOD_ORDER if m in found] + [m for m in found if m not in METHOD_ORDER]


def _estimates(scores: Sequence[ImageScore], bootstrap: int, seed: int) -> Report:
    """`{metric: {"mean", "ci95", "n"}}` of those metrics that these images have."""
    estimates = {}
    for key in METRICS:
        pairs = [(value, s.photograph) for s in scores if (value := _value(s, key)) is not None]
        if pairs:
            values, photographs = zip(*pairs, strict=True)
            found = bootstrap_mean(values, photographs, bootstrap, seed)
            estimates[key] = {"mean": found.mean, "ci95": [found.lo, found.hi], "n": found.n}
    return estimates


def _cell(metric: str, metrics: Mapping[str, Any]) -> str:
    entry = metrics.get(metric)
    return cell(metric, entry and (entry["mean"], *entry["ci95"]))


def _value(score: ImageScore, metric: str) -> float | None:
    if metric == "fidelity":
        return None if score.family == "textured" else score.fidelity
    if metric == "texture_distance":
        return None if score.family in ("tone", "layout") else score.texture_distance
    return score.bad_case if metric == "bad_case_rate" else score.subject


def _checked_counters(counters: Mapping[str, Any]) -> Report:
    forwards = counters.get("forwards_per_student_update", {})
    if set(counters) != _COUNTERS or set(forwards) != _FORWARDS:
        raise ValueError(
            f"counters must be {sorted(_COUNTERS)} with forwards of {sorted(_FORWARDS)}, "
            f"not {sorted(counters)} with {sorted(forwards)}"
        )
    return {
        "forwards_per_student_update": {k: float(forwards[k]) for k in sorted(_FORWARDS)},
        "seconds_per_round": float(counters["seconds_per_round"]),
        "student_wait_share": float(counters["student_wait_share"]),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit(root: Path) -> str | None:
    """The commit of this source tree, `-dirty` if it was changed; None outside a repository."""
    # .git must be ours: an installed copy may lie inside somebody else's repository.
    if not (root / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty"]
    try:
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
