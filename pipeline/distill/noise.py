"""Seeded noise: every random number is a function of (seed, round, slot, purpose).

Nothing depends on which actor ran, in what order, how many there are, or whether one died.
Philox is counter based, so any draw is addressable without drawing those before it; it runs on
the CPU, so that a GPU run sees the numbers that a CPU run sees.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def generator(*key: int | str) -> np.random.Generator:
    """A generator for a key of integers (>= 0) and purposes (words)."""
    words = [zlib.crc32(k.encode()) if isinstance(k, str) else int(k) for k in key]
    # SeedSequence pads with zeros: without their number, (1, 2) and (1, 2, 0) are one stream.
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([len(words), *words])))


def gaussian(shape: Sequence[int], *key: int | str) -> Tensor:
    """Standard normal fp32 noise of ``shape`` for a key."""
    return torch.from_numpy(generator(*key).standard_normal(tuple(shape), dtype=np.float32))


def gaussian_batch(shape: Sequence[int], keys: Sequence[tuple[int | str, ...]]) -> Tensor:
    """One draw a key, stacked: ``[len(keys), *shape]``. A sample never sees its neighbours."""
    return torch.stack([gaussian(shape, *key) for key in keys])
