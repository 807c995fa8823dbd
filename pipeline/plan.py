"""PDSR, probabilistic dual-stream routing: (seed, round) to slots, and no state.

A round is one student update: its student slots and its fake-score slots, under one policy
version. Each slot draws its stream for itself (``p < p_switch``: effect), so a round mixes
streams and effects. Any round is addressable: resuming, replaying and sharding need no history.

A round falls into blocks, one a logical rank, which the workers that there are share out
(``distill/dealing.py``): the plan does not know how many these are.

A batch is of one bucket (one set of token shapes), and all workers of a round wait for each
other, so a round draws its bucket first, for all of them, and then its slots within it. The odds
are those of drawing slots from the whole bank: over many rounds each effect, stream and sample
has the share that it would have without buckets.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.distill.noise import generator
from pipeline.distill.schedule import (
    shift_sigma,
    sigma_above,
    student_sigmas,
    target_simulation_steps,
)
from pipeline.types import Manifest


@dataclass(frozen=True)
class BucketCounts:
    """How many targets of each effect, and general rows, are of one bucket."""

    samples: tuple[int, ...]
    general: int


def count_buckets(manifest: Manifest) -> tuple[BucketCounts, ...]:
    """The counts of a collection's buckets, in the order of ``Manifest.buckets``."""

    def count(stream: int | None, bucket: int) -> int:
        return len(manifest.rows.get((stream, bucket), ()))

    effects = range(len(manifest.effects))
    return tuple(
        BucketCounts(tuple(count(effect, bucket) for effect in effects), count(None, bucket))
        for bucket in range(len(manifest.buckets))
    )


@dataclass(frozen=True)
class PlanSettings:
    """What the plan depends on.

    effect_weights: one (>= 0) an effect; samples: targets an effect; general: general rows;
    buckets: how these fall into buckets, in the order of ``Manifest.buckets`` (empty: all in one);
    score_by_step: see :class:`Slot`.
    """

    seed: int
    batch: int
    p_switch: float
    fake_updates: int
    student_steps: int
    shift: float
    tau_max: float
    tau_min: float
    ta_fm_batch: int
    effect_weights: tuple[float, ...]
    samples: tuple[int, ...]
    general: int
    buckets: tuple[BucketCounts, ...] = ()
    score_by_step: bool = False


@dataclass(frozen=True)
class Slot:
    """One student sample of a round.

    effect: index in the bank, or None in the general stream; sample: index of its target (or
    general row) among those of its bucket; step: the student step k whose prediction is x_g; t:
    where DMD_BS scores it; fake_steps, fake_ts: the step and sigma of each fake-score update, from
    the same trajectory; ts_step, ts_t: target simulation's t_gen (a step index) and t_critic.

    With ``score_by_step`` t and fake_ts lie above the sigma of the step after the sample's own.
    The sampler noises the sample to that sigma, so nothing below it reaches the picture; and an
    early step's sample, which is still blurred, is kept out of what the fake score takes for the
    student's distribution where detail is decided. The last step's is scored at any sigma.
    """

    effect: int | None
    sample: int
    step: int
    t: float
    fake_steps: tuple[int, ...]
    fake_ts: tuple[float, ...]
    ts_step: int
    ts_t: float
    bucket: int = 0


@dataclass(frozen=True)
class AnchorSlot:
    """One trajectory-anchoring (TA-FM) sample: an effect's target in a bucket, at sigma t."""

    effect: int
    sample: int
    t: float
    bucket: int = 0


def _pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    share = np.asarray(weights, dtype=np.float64)
    return int(rng.choice(len(share), p=share / share.sum()))


def _open_unit(rng: np.random.Generator) -> float:
    """Uniform on (0, 1): both ends make a loss degenerate."""
    return float(rng.uniform(1e-3, 1 - 1e-3))


@dataclass(frozen=True)
class _Odds:
    """The odds of one bucket: of the effect stream within it, and of each effect within that.

    effects: per effect its weight times its share of samples in the bucket; of_effects and
    of_general: the bucket's share of either stream.
    """

    counts: BucketCounts
    effects: tuple[float, ...]
    of_effects: float
    of_general: float

    def share(self, p_switch: float) -> float:
        """Of all slots drawn without regard to buckets, the share that is in this one."""
        return p_switch * self.of_effects + (1 - p_switch) * self.of_general

    def effect_stream(self, p_switch: float) -> float:
        """The effect stream's share within the bucket."""
        if self.of_effects == self.of_general:
            return p_switch
        return p_switch * self.of_effects / self.share(p_switch)


def _odds(settings: PlanSettings) -> list[_Odds]:
    odds = []
    whole = sum(settings.effect_weights)
    for counts in settings.buckets or (BucketCounts(settings.samples, settings.general),):
        each = zip(settings.effect_weights, counts.samples, settings.samples, strict=True)
        effects = tuple(weight * (count / total) for weight, count, total in each)
        of_effects = sum(effects) / whole if effects else 0.0
        of_general = counts.general / settings.general if settings.general else 0.0
        odds.append(_Odds(counts, effects, of_effects, of_general))
    return odds


def round_slots(settings: PlanSettings, round_index: int, rank: int = 0) -> list[Slot]:
    """The student slots of one round and logical rank, ``settings.batch`` of them, of one bucket.

    Raises:
        ValueError: the effect stream is asked for but there are no effects, or likewise the
            general stream.
    """
    p_switch = settings.p_switch
    if p_switch > 0 and not settings.effect_weights:
        raise ValueError("p_switch is above 0 but the bank has no effects")
    if p_switch < 1 and settings.general == 0:
        raise ValueError("p_switch is below 1 but the bank has no general rows")
    allowed = target_simulation_steps(settings.student_steps, settings.shift, settings.tau_max)
    lowest = _lowest_sigmas(settings)
    odds = _odds(settings)
    # No rank: workers whose pictures are of one size need the same time.
    bucket = _pick(
        generator(settings.seed, "bucket", round_index), [o.share(p_switch) for o in odds]
    )
    within = odds[bucket]
    slots = []
    for index in range(settings.batch):
        rng = generator(settings.seed, "plan", round_index, rank, index)
        effect = None
        if rng.random() < within.effect_stream(p_switch):
            effect = _pick(rng, within.effects)
        rows = within.counts.general if effect is None else within.counts.samples[effect]
        sample, step = int(rng.integers(rows)), int(rng.integers(settings.student_steps))
        t = sigma_above(_open_unit(rng), lowest[step], settings.shift)
        fake_steps = _spread(rng, settings.student_steps, settings.fake_updates)
        slots.append(
            Slot(
                effect=effect,
                sample=sample,
                step=step,
                t=t,
                fake_steps=fake_steps,
                fake_ts=tuple(
                    sigma_above(_open_unit(rng), lowest[k], settings.shift) for k in fake_steps
                ),
                ts_step=int(rng.choice(allowed)) if allowed else settings.student_steps - 1,
                ts_t=sigma_above(_open_unit(rng), settings.tau_min, settings.shift),
                bucket=bucket,
            )
        )
    return slots


def _lowest_sigmas(settings: PlanSettings) -> list[float]:
    """By student step, what its samples are scored above."""
    if not settings.score_by_step:
        return [0.0] * settings.student_steps
    return [*student_sigmas(settings.student_steps, settings.shift)[1:], 0.0]


def _spread(rng: np.random.Generator, steps: int, updates: int) -> tuple[int, ...]:
    """Steps for the fake-score updates: every step once before any twice."""
    order: list[int] = []
    while len(order) < updates:
        order += rng.permutation(steps).tolist()
    return tuple(order[:updates])


def round_anchors(settings: PlanSettings, round_index: int, rank: int = 0) -> list[AnchorSlot]:
    """TA-FM's own larger batch of a round, effects mixed; empty if ``ta_fm_batch`` is 0.

    Its bucket is its own draw: with the slots' it would take on the general stream's shares.
    """
    if not settings.effect_weights:
        return []
    odds = _odds(settings)
    bucket = _pick(
        generator(settings.seed, "anchor bucket", round_index), [o.of_effects for o in odds]
    )
    within = odds[bucket]
    anchors = []
    for index in range(settings.ta_fm_batch):
        rng = generator(settings.seed, "anchor", round_index, rank, index)
        effect = _pick(rng, within.effects)
        sample = int(rng.integers(within.counts.samples[effect]))
        t = shift_sigma(_open_unit(rng), settings.shift)
        anchors.append(AnchorSlot(effect, sample, t, bucket))
    return anchors
