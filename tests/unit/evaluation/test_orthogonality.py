"""Directions of prompts, the greedy choice of triggers, and the router that reads prompts."""

import numpy as np
import pytest

from pipeline.evaluation.orthogonality import cosines, direction, most_orthogonal, off_diagonal
from pipeline.evaluation.routing import routed, routing_errors


def test_a_direction_is_of_the_prompts_own_tokens() -> None:
    rng = np.random.default_rng(0)
    picture, words = rng.normal(size=(5, 8)), rng.normal(size=(3, 8))
    empty = np.concatenate([picture, rng.normal(size=(1, 8))]).astype(np.float32)
    states = np.concatenate([picture, words]).astype(np.float32)
    expected = words.mean(axis=0) / np.linalg.norm(words.mean(axis=0))
    assert direction(states, empty) == pytest.approx(expected, abs=1e-6)
    # Nothing of its own: the empty prompt itself still has a direction.
    assert np.linalg.norm(direction(empty, empty)) == pytest.approx(1)


def test_cosines_against_a_loop() -> None:
    vectors = np.random.default_rng(1).normal(size=(4, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = cosines(vectors)
    for i in range(4):
        for j in range(4):
            assert found[i, j] == pytest.approx(float(np.dot(vectors[i], vectors[j])))
    assert len(off_diagonal(found)) == 12 and 1.0 not in off_diagonal(found)


def test_the_greedy_choice_finds_the_orthogonal_candidate() -> None:
    axes = np.eye(6)
    near = (axes[0] + 0.1 * axes[5]) / np.linalg.norm(axes[0] + 0.1 * axes[5])
    sets = [np.stack([near, axes[1]]), np.stack([near, -axes[1], axes[2]])]
    # The first axis is taken already; an opposite direction is as near as the same one.
    assert most_orthogonal(sets, axes[:1]) == [1, 2]
    assert most_orthogonal([axes[:2]], np.empty((0, 6))) == [0]


def test_the_greedy_choice_beats_the_first_of_each() -> None:
    rng = np.random.default_rng(2)
    sets = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(12, 32, 24))]
    chosen = [
        some[k] for some, k in zip(sets, most_orthogonal(sets, np.empty((0, 24))), strict=True)
    ]
    worst = {
        name: np.abs(off_diagonal(cosines(np.array(v)))).max()
        for name, v in (("chosen", chosen), ("first", [some[0] for some in sets]))
    }
    assert worst["chosen"] < 0.75 * worst["first"]


def test_a_router_goes_by_what_tells_entries_apart() -> None:
    rng = np.random.default_rng(3)
    common = 20 * rng.normal(size=16)
    own = rng.normal(size=(6, 16))
    index = common + own
    queries = common + own + 0.2 * rng.normal(size=own.shape)
    assert routed(index, queries) == [0, 1, 2, 3, 4, 5]
    assert routing_errors(index, queries) == 0
    assert routing_errors(index, queries[[1, 0, 2, 3, 4, 5]]) == pytest.approx(2 / 6)
