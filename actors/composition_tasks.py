"""Judging compositions: a Ray task a photograph, against the true "A, then B"."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from pipeline.evaluation.autoencoded import autoencoded
from pipeline.evaluation.composition import Composition, score_composition
from pipeline.evaluation.effectbench import open_source
from pipeline.evaluation.report import ImageScore
from pipeline.miniature.effects import true_samples
from pipeline.models.families import load_editor
from pipeline.tensor_store import TensorStore

SAMPLES = 4
Array = NDArray[np.float32]


@dataclass(frozen=True)
class CompositionJob:
    """A photograph with the pictures to judge: (method, pair's name) to its key."""

    photograph: str
    path: str
    pictures: tuple[tuple[str, str, str], ...]


@ray.remote  # type: ignore[untyped-decorator]
def judge_compositions(
    jobs: Sequence[CompositionJob],
    pairs: Mapping[str, Composition],
    model: str,
    device: str,
    dtype: str,
    threads: int,
    pictures: str,
) -> list[ImageScore]:
    """The scores of all pictures of the jobs."""
    torch.set_num_threads(threads)
    editor = load_editor(model, ["vae"], device, getattr(torch, dtype))
    store = TensorStore([Path(pictures)])
    scores = []
    for job in jobs:
        outputs = {(m, pair): store.get(key).numpy() for m, pair, key in job.pictures}
        height, width = next(iter(outputs.values())).shape[:2]
        source = open_source(Path(job.path), height, width)
        for name in dict.fromkeys(pair for _, pair in outputs):
            pair = pairs[name]
            truths = true_outcomes(pair, source, zlib.crc32(job.photograph.encode()))
            # Outputs come out of the autoencoder, so what they are taken for goes through it, too.
            seen = {k: autoencoded(editor, v) for k, v in truths.items()}
            mine = {method: out for (method, of), out in outputs.items() if of == name}
            scores += score_composition(pair, job.photograph, source, truths, seen, mine)
    return scores


def true_outcomes(pair: Composition, source: Array, seed: int) -> dict[str, Array]:
    """True samples ``[K, H, W, 3]`` of both effects in turn, of each alone, and the source."""
    first = true_samples(pair.first, source, SAMPLES, seed)
    both = [true_samples(pair.second, one, 1, seed + i)[0] for i, one in enumerate(first)]
    return {
        pair.name: np.stack(both),
        pair.first: first,
        pair.second: true_samples(pair.second, source, SAMPLES, seed),
        "source": source[None],
    }
