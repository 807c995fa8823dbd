"""The field's scores as tables: means with intervals, methods as the paper's own rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.metrics import bootstrap_mean
from pipeline.evaluation.report import MISSING, Report, markdown

# In the order of the paper's main table, with headings and decimals.
FIELD_METRICS: dict[str, tuple[str, int]] = {
    "clip": ("CLIP ↑", 3),
    "dreamsim": ("DreamSim ↓", 3),
    "dino": ("DINO ↑", 3),
    "edit_reward": ("EditReward ↑", 3),
    "vsa": ("VSA, 0 to 5 ↑", 3),
    "bcr": ("BCR ↓", 3),
}


@dataclass(frozen=True)
class FieldScore:
    """One judge's score of one output; ``metric`` is of :data:`FIELD_METRICS`."""

    method: str
    effect: str
    photograph: str
    metric: str
    value: float


def field_estimates(
    scores: Sequence[FieldScore], bootstrap: int, seed: int
) -> dict[str, dict[str, Any]]:
    """By method: metric to mean, 95 % interval over photographs, and n; the same by effect."""
    found: dict[str, dict[str, Any]] = {}
    for method in dict.fromkeys(score.method for score in scores):
        mine = [score for score in scores if score.method == method]
        effects = {
            effect: _estimates([s for s in mine if s.effect == effect], bootstrap, seed)
            for effect in dict.fromkeys(score.effect for score in mine)
        }
        found[method] = {"metrics": _estimates(mine, bootstrap, seed), "effects": effects}
    return found


def with_field(report: Report, estimates: Mapping[str, Any], agreed: Mapping[str, Any]) -> Report:
    """A report with the judges' scores beside its own, under ``judges`` of each method."""
    methods = {
        name: block | ({"judges": estimates[name]} if name in estimates else {})
        for name, block in report["methods"].items()
    }
    return report | {"methods": methods, "judge_agreement": dict(agreed)}


def field_table(report: Report, agreed: Mapping[str, float | None], notes: Sequence[str]) -> str:
    """The judges' table, the judge's agreement with itself, and what its answers took."""
    blocks = {n: b["judges"]["metrics"] for n, b in report["methods"].items() if "judges" in b}
    used = [key for key in FIELD_METRICS if any(key in block for block in blocks.values())]
    rows = [
        [name, str(report["methods"][name]["nfe"]), *(_cell(key, block.get(key)) for key in used)]
        for name, block in blocks.items()
    ]
    lines = [
        "## Judges of the field",
        "",
        markdown(["method", "NFE", *(FIELD_METRICS[key][0] for key in used)], rows),
        "",
        "CLIP, DINO and DreamSim hold an output against its own source photograph. BCR: share of "
        "outputs where the vision-language judge says that the effect did not happen; VSA: 0 for "
        "such an output, else its subject-consistency score.",
    ]
    if agreed:
        said = {key: MISSING if k is None else f"{k:.2f}" for key, k in agreed.items()}
        lines += [
            "",
            f"The judge against itself, two passes, Cohen's kappa: effect happened "
            f"{said['happened']}, subject kept {said['kept']} (quadratic weights).",
        ]
    return "\n".join([*lines, "", *notes]) + "\n"


def _estimates(scores: Sequence[FieldScore], bootstrap: int, seed: int) -> dict[str, Any]:
    estimates = {}
    for metric in FIELD_METRICS:
        mine = [score for score in scores if score.metric == metric]
        if mine:
            photographs = [score.photograph for score in mine]
            found = bootstrap_mean([s.value for s in mine], photographs, bootstrap, seed)
            estimates[metric] = {"mean": found.mean, "ci95": [found.lo, found.hi], "n": found.n}
    return estimates


def _cell(metric: str, entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return MISSING
    digits = FIELD_METRICS[metric][1]
    mean, lo, hi = (f"{value:.{digits}f}" for value in (entry["mean"], *entry["ci95"]))
    return f"{mean} [{lo}, {hi}]"
