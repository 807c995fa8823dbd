"""A nearest-prompt router: which LoRA of a bank a user's words ask for."""

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def routed(index: Array, queries: Array) -> list[int]:
    """For each query ``[Q, D]`` the nearest entry of the index ``[N, D]``, by cosine.

    What all entries share is taken off first: a text encoder's states all point one way, and
    cosines of what is left tell them apart better.
    """
    common = index.mean(axis=0)
    near = _unit(queries - common) @ _unit(index - common).T
    return [int(i) for i in near.argmax(axis=1)]


def routing_errors(index: Array, queries: Array) -> float:
    """The share of queries, one an entry in the same order, that are sent to another entry."""
    return float(np.mean([i != found for i, found in enumerate(routed(index, queries))]))


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12))
