"""What a comparison may claim: means, intervals and paired tests, over effects and seeds.

Pure: numbers in, numbers and tables out. The unit is a cell: one method's mean score of one effect
over the held-out photographs, of one training seed. Effects are what a product ships, so they are
what is resampled; photographs of one effect are no independent evidence about another.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.report import ImageScore, markdown

Matrix = NDArray[np.float64]

# Metric to (heading, decimals, whether more is better).
METRICS: dict[str, tuple[str, int, bool]] = {
    "fidelity": ("fidelity, dB ↑", 2, True),
    "texture_distance": ("texture distance ↓", 3, False),
    "bad_case_rate": ("bad-case rate ↓", 3, False),
    "subject": ("subject kept ↑", 3, True),
    "generality": ("generality, dB ↑", 2, True),
}
RESAMPLES = 4000
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class Cell:
    """A method's mean scores of one effect, by metric; ``seed`` None where nothing was trained."""

    method: str
    seed: int | None
    effect: str
    scores: dict[str, float]


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    lo: float
    hi: float


@dataclass(frozen=True)
class Paired:
    """A student less a contender, over the effects that both have.

    better: in the metric's own direction; p: two-sided, of a sign-flip test over effects.
    """

    difference: Interval
    p: float
    better: bool
    effects: int


def cells_of(scores: Sequence[ImageScore], seed: int | None) -> list[Cell]:
    """Image scores as cells; tone and layout effects have fidelity, textured ones texture."""
    groups: dict[tuple[str, str], list[ImageScore]] = {}
    for score in scores:
        groups.setdefault((score.method, score.effect), []).append(score)
    return [
        Cell(method, seed, effect, _means(images)) for (method, effect), images in groups.items()
    ]


def _means(images: Sequence[ImageScore]) -> dict[str, float]:
    family = images[0].family
    means = {
        "bad_case_rate": float(np.mean([s.bad_case for s in images])),
        "subject": float(np.mean([s.subject for s in images])),
    }
    if family != "textured":
        means["fidelity"] = float(np.mean([s.fidelity for s in images if s.fidelity is not None]))
    if family not in ("tone", "layout"):
        means["texture_distance"] = float(
            np.mean([s.texture_distance for s in images if s.texture_distance is not None])
        )
    return means


def matrix(cells: Sequence[Cell], method: str, metric: str) -> tuple[Matrix, list[str]]:
    """A method's scores ``[seeds, effects]`` and the effects' names.

    Raises:
        ValueError: an effect that not every seed has.
    """
    mine = [c for c in cells if c.method == method and metric in c.scores]
    effects = list(dict.fromkeys(c.effect for c in mine))
    seeds = _seeds(cells, method, metric)
    table = {(c.seed, c.effect): c.scores[metric] for c in mine}
    if len(table) < len(seeds) * len(effects):
        raise ValueError(f"{method}: seeds {seeds} do not have the same effects in {metric}")
    values = [[table[seed, effect] for effect in effects] for seed in seeds]
    return np.array(values, dtype=np.float64).reshape(len(seeds), len(effects)), effects


def summarise(cells: Sequence[Cell], method: str, metric: str, seed: int = 0) -> Interval | None:
    """Mean over seeds and effects, both resampled; None where the method lacks the metric."""
    values, effects = matrix(cells, method, metric)
    if not effects:
        return None
    rng = np.random.default_rng(seed)
    shares = _shares(rng, len(effects))
    return _interval(float(values.mean()), _resampled(values, _shares(rng, len(values)), shares))


def paired(
    cells: Sequence[Cell], student: str, other: str, metric: str, seed: int = 0
) -> Paired | None:
    """The student less another method on the same effects; None where they share none.

    Of the same training seeds both sides are what came of one and the same draw (one student
    before and after, or on other photographs): then seeds, too, are resampled together.
    """
    mine, names = matrix(cells, student, metric)
    theirs, other_names = matrix(cells, other, metric)
    shared = [name for name in names if name in other_names]
    if not shared:
        return None
    mine = mine[:, [names.index(name) for name in shared]]
    theirs = theirs[:, [other_names.index(name) for name in shared]]
    rng = np.random.default_rng(seed)
    shares = _shares(rng, len(shared))
    of_mine, of_theirs = _shares(rng, len(mine)), _shares(rng, len(theirs))
    seeds, other_seeds = _seeds(cells, student, metric), _seeds(cells, other, metric)
    if set(seeds) == set(other_seeds):
        of_theirs = of_mine[:, [seeds.index(one) for one in other_seeds]]
    draws = _resampled(mine, of_mine, shares) - _resampled(theirs, of_theirs, shares)
    by_effect = mine.mean(0) - theirs.mean(0)
    mean = float(by_effect.mean())
    better = mean > 0 if METRICS[metric][2] else mean < 0
    return Paired(_interval(mean, draws), sign_flip(by_effect, rng), better, len(shared))


def sign_flip(differences: Matrix, rng: np.random.Generator, flips: int = 20000) -> float:
    """Two-sided p of paired differences under random signs; counts the observed one itself."""
    signs = rng.choice([-1.0, 1.0], size=(flips, len(differences)))
    # A hair's breadth, so that equal sums in another order of adding count as equal.
    extreme = np.abs(signs @ differences) >= abs(differences.sum()) - 1e-12
    return float((extreme.sum() + 1) / (flips + 1))


def _shares(rng: np.random.Generator, count: int) -> Matrix:
    """Weights ``[resamples, count]`` of a bootstrap: how often each was drawn, over count."""
    return rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES) / count


def _seeds(cells: Sequence[Cell], method: str, metric: str) -> list[int | None]:
    """A method's training seeds, in the order of :func:`matrix`'s rows."""
    return list(dict.fromkeys(c.seed for c in cells if c.method == method and metric in c.scores))


def _resampled(values: Matrix, seeds: Matrix, effects: Matrix) -> Matrix:
    """Means under the weights of resampled seeds and effects, ``[resamples]``."""
    return np.asarray(np.einsum("rs,se,re->r", seeds, values, effects))


def _interval(mean: float, draws: Matrix) -> Interval:
    lo, hi = np.percentile(draws, [2.5, 97.5])
    return Interval(mean, float(lo), float(hi))


def table(cells: Sequence[Cell], costs: dict[str, dict[str, float]], student: str) -> str:
    """Markdown: a row a method with its costs and means; ``*`` marks p < 0.05 against student."""
    methods = list(dict.fromkeys(c.method for c in cells))
    metrics = [m for m in METRICS if any(m in c.scores for c in cells)]
    rows = []
    for method in methods:
        cost = costs.get(method, {})
        row = [
            method,
            f"{cost['nfe']:.0f}" if "nfe" in cost else "-",
            f"{cost['ms_per_image']:.0f}" if "ms_per_image" in cost else "-",
            f"{cost['bytes'] / 1e6:.2f}" if "bytes" in cost else "-",
        ]
        for metric in metrics:
            found = summarise(cells, method, metric)
            if found is None:
                row.append("-")
                continue
            digits = METRICS[metric][1]
            against = None if method == student else paired(cells, student, method, metric)
            mark = "*" if against is not None and against.p < SIGNIFICANT else ""
            row.append(
                f"{found.mean:.{digits}f}{mark} [{found.lo:.{digits}f}, {found.hi:.{digits}f}]"
            )
        rows.append(row)
    return markdown(
        ["method", "NFE", "ms/image", "MB to ship", *(METRICS[m][0] for m in metrics)], rows
    )


def paired_table(cells: Sequence[Cell], student: str) -> str:
    """Markdown: student less each other method, with interval and p, a row a method and metric."""
    others = [m for m in dict.fromkeys(c.method for c in cells) if m != student]
    rows = [[other, *row] for other in others for row in _paired_rows(cells, student, other)]
    return markdown([f"{student} less", "metric", "difference", "p", f"{student} is"], rows)


def pairs_table(cells: Sequence[Cell], pairs: Sequence[Sequence[str]]) -> str:
    """Markdown: the first of each pair of methods less the second; empty without any."""
    rows = [[one, other, *row] for one, other in pairs for row in _paired_rows(cells, one, other)]
    header = ["method", "less", "metric", "difference", "p", "the first is"]
    return markdown(header, rows) if rows else ""


def _paired_rows(cells: Sequence[Cell], student: str, other: str) -> list[list[str]]:
    """Metric, difference with its interval, p and verdict, of those metrics that both have."""
    rows = []
    for metric, (heading, digits, _) in METRICS.items():
        if (found := paired(cells, student, other, metric)) is None:
            continue
        d = found.difference
        interval = f"{d.mean:+.{digits}f} [{d.lo:+.{digits}f}, {d.hi:+.{digits}f}]"
        rows.append([heading, interval, f"{found.p:.4f}", _verdict(found)])
    return rows


def _verdict(found: Paired) -> str:
    """In a word; of few effects the sign-flip test has no p below 2 / 2**n, however they differ."""
    if found.p < SIGNIFICANT:
        return "better" if found.better else "worse"
    if 2 / 2**found.effects >= SIGNIFICANT:
        return f"untold: {found.effects} effects are too few"
    return "not shown to differ"


def to_json(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Cells as plain data, rounded to what anyone would read."""
    return [asdict(c) | {"scores": {k: round(v, 5) for k, v in c.scores.items()}} for c in cells]


def from_json(data: Sequence[dict[str, Any]]) -> list[Cell]:
    """The inverse of :func:`to_json`."""
    return [Cell(**entry) for entry in data]
