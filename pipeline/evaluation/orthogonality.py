"""How far apart prompts are, as a text encoder sees them (asymmetric orthogonal prompting)."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def direction(states: NDArray[np.float32], empty: NDArray[np.float32]) -> Array:
    """A prompt's unit direction ``[D]``: the mean of its own tokens' states.

    states ``[L, D]``, empty ``[L0, D]``: the states of the empty prompt about the same pictures. A
    causal encoder gives both the same states until their words differ (the pictures', mostly);
    what they share says nothing of the prompt and is left out.
    """
    shared, most = 0, min(len(states), len(empty))
    while shared < most and np.allclose(states[shared], empty[shared], atol=1e-4):
        shared += 1
    own = states[shared:] if shared < len(states) else states
    mean = own.astype(np.float64).mean(axis=0)
    return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12))


def cosines(directions: Array) -> Array:
    """The cosine matrix ``[n, n]`` of unit directions ``[n, D]``."""
    return np.asarray(directions @ directions.T)


def off_diagonal(matrix: Array) -> Array:
    """The entries of a square matrix that compare two different things."""
    return np.asarray(matrix[~np.eye(len(matrix), dtype=bool)])


def most_orthogonal(candidates: Sequence[Array], fixed: Array) -> list[int]:
    """One candidate of each set ``[C, D]``, chosen one set after another, greedily.

    Each time the one whose largest ``|cosine|`` with all that was chosen before is smallest.
    fixed ``[n, D]``: directions that are there already.
    """
    chosen: list[int] = []
    there = [*fixed]
    for some in candidates:
        worst = np.abs(some @ np.array(there).T).max(axis=1) if there else np.zeros(len(some))
        best = int(worst.argmin())
        chosen.append(best)
        there.append(some[best])
    return chosen
