"""Looks at a student in training: a validation score, its range, the pictures of a preview.

A look samples the student's few steps on held-back pictures, always from the same noise, and
puts the live weights back: it draws from no generator that the training has.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from pipeline.distill.batches import conditions_of, targets_of
from pipeline.distill.names import SCORE
from pipeline.distill.noise import gaussian_batch
from pipeline.distill.sampler import sample_student
from pipeline.distill.signals import TeacherRange
from pipeline.distill.update import STUDENT, StudentTrainer
from pipeline.types import Manifest, Sample

# Two samples a pair: the fewest that show a distribution's spread.
DRAWS = 2
_RANGE_TARGETS = 256


@dataclass(frozen=True)
class Pair:
    """A held-back (effect, source) pair."""

    effect: str
    sample: Sample


@dataclass(frozen=True)
class Look:
    """What a look found.

    metrics: under ``validation/``; outputs: the student's latents ``[N, C]`` of each pair, first
    draw, in the pairs' order.
    """

    metrics: dict[str, float]
    outputs: list[Tensor]


def energy_score(first: Tensor, second: Tensor, target: Tensor) -> Tensor:
    """How far the student's distribution is from the teacher's, per pair ``[B]``; lower is better.

    ``(|x - y| + |x' - y|) / 2 - |x - x'| / 2``, distances root-mean-square over ``[N, C]``; x, x'
    are two student samples and y the teacher's. It is the energy score (Gneiting and Raftery
    2007): in expectation least where the two distributions are one, so that a blurred outcome of
    an effect by chance, which a plain distance would prefer, loses.
    """
    to_target = (_distance(first, target) + _distance(second, target)) / 2
    return to_target - _distance(first, second) / 2


def held_back_pairs(manifest: Manifest) -> list[Pair]:
    """All held-back pairs, neighbours of one bucket, each effect's first ones first."""
    longest = max((len(e.held_back) for e in manifest.effects), default=0)
    pairs = [
        Pair(effect.name, effect.held_back[i])
        for i in range(longest)
        for effect in manifest.effects
        if i < len(effect.held_back)
    ]
    return sorted(pairs, key=lambda pair: pair.sample.shapes)


@dataclass
class Watch:
    """Looks at a trainer's student: its average where it has one, else the live weights."""

    trainer: StudentTrainer
    pairs: Sequence[Pair]
    batch: int = 16

    def __post_init__(self) -> None:
        entries = self.trainer.manifest.effects
        every = [s.target for e in entries for s in e.samples if s.target is not None]
        step = max(1, len(every) // _RANGE_TARGETS)
        self.range = TeacherRange.of(self.trainer.store.get_many(every[::step]))

    def round(self, x_g: Tensor) -> dict[str, float]:
        """A round's own signal, from its rollout ``[B, N, C]``: nothing is computed anew."""
        return {"range/outside": self.range.outside(x_g)}

    @torch.no_grad()
    def look(self) -> Look:
        """Sample every pair twice and score it against its teacher's target."""
        state = self.trainer.adapters.state(STUDENT)
        live = {key: value.detach().clone() for key, value in state.items()}
        if self.trainer.average is not None:
            self.trainer.adapters.replace(STUDENT, self.trainer.average)
        try:
            return self._look()
        finally:
            self.trainer.adapters.replace(STUDENT, live)

    def _look(self) -> Look:
        outputs: list[Tensor] = []
        scores: dict[str, list[float]] = {}
        contrast: list[float] = []
        outside: list[float] = []
        for _, group in groupby(self.pairs, key=lambda pair: pair.sample.shapes):
            alike = list(group)
            for start in range(0, len(alike), self.batch):
                some = alike[start : start + self.batch]
                first, second = (self._sample(some, draw) for draw in range(DRAWS))
                y = targets_of([pair.sample for pair in some], self.trainer.store)
                each = energy_score(first, second, y).tolist()
                for pair, score in zip(some, each, strict=True):
                    scores.setdefault(pair.effect, []).append(score)
                contrast += (first.std(dim=(1, 2)) / y.std(dim=(1, 2))).tolist()
                outside.append(self.range.outside(torch.stack([first, second])))
                outputs += list(first)
        by_effect = {f"{SCORE}/{effect}": _mean(values) for effect, values in scores.items()}
        metrics = {
            SCORE: _mean(list(by_effect.values())),
            "validation/contrast": _mean(contrast),
            "validation/outside": _mean(outside),
        }
        return Look(metrics | by_effect, outputs)

    def _sample(self, pairs: Sequence[Pair], draw: int) -> Tensor:
        trainer = self.trainer
        editor, plan = trainer.editor, trainer.plan
        samples = [pair.sample for pair in pairs]
        conditions = conditions_of(samples, "student", trainer.store).to(editor.device)
        shape = samples[0].tokens, conditions.sources.shape[-1]

        def noise(step: int) -> Tensor:
            keys = [
                (plan.seed, "watch", f"{p.effect} {p.sample.target}", draw, step) for p in pairs
            ]
            return gaussian_batch(shape, keys).to(editor.device)

        with trainer.adapters.use(STUDENT):
            x0 = sample_student(editor, conditions, noise(0), noise, plan.student_steps, plan.shift)
        return x0.float().cpu()


def best_of(scores: Mapping[int, float]) -> int:
    """The round with the least score; NaN never wins."""
    return min(scores, key=lambda r: (scores[r] != scores[r], scores[r], r))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).pow(2).mean(dim=(1, 2)).sqrt()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
