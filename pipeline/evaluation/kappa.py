"""How far a judge agrees with itself: Cohen's kappa (Cohen 1960; weighted, 1968)."""

from collections.abc import Sequence

import numpy as np


def agreement(first: Sequence[float], second: Sequence[float], scale: bool = False) -> float | None:
    """Cohen's kappa of two passes over the same outputs; ``scale``: with quadratic weights.

    Answers are rounded to whole numbers. 1 is full agreement, 0 what chance gives, below 0 less
    than chance. None where it does not exist: no outputs, or one answer throughout both passes.
    """
    assert len(first) == len(second)
    left, right = np.rint(first).astype(int), np.rint(second).astype(int)
    classes = np.unique([left, right])
    if len(classes) < 2:
        return None
    places = np.searchsorted(classes, left), np.searchsorted(classes, right)
    seen = np.zeros((len(classes), len(classes)))
    np.add.at(seen, places, 1 / len(left))
    chance = np.outer(seen.sum(axis=1), seen.sum(axis=0))
    apart = classes[:, None] - classes[None]
    weights = apart.astype(float) ** 2 if scale else (apart != 0).astype(float)
    return float(1 - (weights * seen).sum() / (weights * chance).sum())
