"""Composition: "A, then B" by one prompt, against the true B on the true A."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, islice

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.metrics import EffectJudge, fidelity_db, subject_kept, texture_distance
from pipeline.evaluation.report import ImageScore

Array = NDArray[np.float32]
# Families of the first effect and of the second, in the order in which pairs are taken.
KINDS = (("layout", "tone"), ("tone", "layout"), ("tone", "textured"), ("layout", "textured"))


@dataclass(frozen=True)
class Composition:
    """Two effects, one after the other; textured if either is."""

    first: str
    second: str
    textured: bool

    @property
    def name(self) -> str:
        return f"{self.first}, then {self.second}"


def choose_pairs(families: Mapping[str, str], count: int) -> list[Composition]:
    """Pairs of effects of different families, the kinds of pairs in turn.

    A function of the effects alone: each family's effects are walked through at strides that
    let no two pairs share both effects while there are others.
    """
    by_family: dict[str, list[str]] = {}
    for name, family in families.items():
        by_family.setdefault(family, []).append(name)
    kinds = [kind for kind in KINDS if all(family in by_family for family in kind)]
    if not kinds:
        return []
    chosen: dict[str, Composition] = {}
    most = sum(len(by_family[a]) * len(by_family[b]) for a, b in kinds)
    for i, (a, b) in enumerate(islice(cycle(kinds), 50 * count)):
        if len(chosen) == min(count, most):
            break
        before, after = by_family[a], by_family[b]
        # 5 and 7 walk through every family of a few dozen; the last term moves on after a lap.
        turn = i // len(before)
        pair = Composition(before[(5 * i) % len(before)], after[(7 * i + turn) % len(after)], False)
        pair = Composition(pair.first, pair.second, "textured" in (a, b))
        chosen.setdefault(pair.name, pair)
    return list(chosen.values())


def score_composition(
    pair: Composition,
    photograph: str,
    source: Array,
    truths: Mapping[str, Array],
    seen: Mapping[str, Array],
    outputs: Mapping[str, Array],
) -> list[ImageScore]:
    """The scores of several methods' outputs of one pair on one photograph.

    truths: samples ``[K, H, W, 3]`` by the pair's name, by either effect's, and ``source``; seen:
    the same through the autoencoder. An output is a bad case where it looks more like one of the
    effects alone, or like the photograph, than like both in turn.
    """
    judge, true = EffectJudge(seen), truths[pair.name]
    scores = []
    for method, output in outputs.items():
        happened = judge.happened(output)
        scores.append(
            ImageScore(
                method=method,
                effect=pair.name,
                family="textured" if pair.textured else "layout",
                photograph=photograph,
                draw=0,
                fidelity=None if pair.textured else fidelity_db(output, true[0]),
                texture_distance=texture_distance(output, true) if pair.textured else None,
                bad_case=float(happened != pair.name),
                subject=subject_kept(output, source, true),
                happened=happened,
            )
        )
    return scores
