"""Noise by key: the same from anywhere, and no two keys alike."""

import numpy as np
import torch

from pipeline.distill.noise import gaussian, gaussian_batch, generator


def test_a_draw_depends_on_its_key_alone() -> None:
    first = gaussian((3, 4), 7, "start", 2, 0, 5)
    gaussian((9,), 7, "start", 2, 0, 4)
    assert torch.equal(first, gaussian((3, 4), 7, "start", 2, 0, 5))
    batch = gaussian_batch((3, 4), [(7, "start", 2, 0, i) for i in (1, 5)])
    assert torch.equal(batch[1], first)


def test_keys_that_differ_give_streams_that_differ() -> None:
    keys: list[tuple[int | str, ...]] = [
        (s, p, r) for s in (0, 1) for p in ("a", "b") for r in (0, 1)
    ]
    # Trailing zeros: SeedSequence alone would take these for one key.
    keys += [(0, "a"), (0, "a", 0, 0), (0,), (0, 0)]
    draws = [tuple(generator(*key).integers(0, 2**62, 2).tolist()) for key in keys]
    assert len(set(draws)) == len(keys)


def test_it_is_standard_normal() -> None:
    values = np.asarray(gaussian((40_000,), 3, "start"))
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    other = np.asarray(gaussian((40_000,), 3, "score"))
    assert abs(np.corrcoef(values, other)[0, 1]) < 0.02
