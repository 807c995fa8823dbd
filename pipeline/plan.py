"""PDSR, probabilistic dual-stream routing: (seed, round) to slots, and no state.

A round is one student update: its student slots and its fake-score slots, under one policy
version. Each slot draws its stream for itself (``p < p_switch``: effect), so a round mixes
streams and effects. Any round is addressable: resuming, replaying and sharding need no history.
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


@dataclass(frozen=True)
class PlanSettings:
    """What the plan depends on.

    effect_weights: one (>= 0) an effect; samples: targets an effect; general: general rows.
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


@dataclass(frozen=True)
class Slot:
    """One student sample of a round.

    effect: index in the bank, or None in the general stream; sample: index of its target (or
    general row); step: the student step k whose prediction is x_g; t: where DMD_BS scores it;
    fake_steps, fake_ts: the step and sigma of each fake-score update, from the same trajectory;
    ts_step, ts_t: target simulation's t_gen (a step index) and t_critic.
    """

    effect: int | None
    sample: int
    step: int
    t: float
    fake_steps: tuple[int, ...]
    fake_ts: tuple[float, ...]
    ts_step: int
    ts_t: float


@dataclass(frozen=True)
class AnchorSlot:
    """One trajectory-anchoring (TA-FM) sample: an effect's target at sigma t."""

    effect: int
    sample: int
    t: float


def _pick(rng: np.random.Generator, weights: Sequence[float]) -> int:
    share = np.asarray(weights, dtype=np.float64)
    return int(rng.choice(len(share), p=share / share.sum()))


def _open_unit(rng: np.random.Generator) -> float:
    """Uniform on (0, 1): both ends make a loss degenerate."""
    return float(rng.uniform(1e-3, 1 - 1e-3))


def round_slots(settings: PlanSettings, round_index: int, rank: int = 0) -> list[Slot]:
    """The student slots of one round on one worker, ``settings.batch`` of them.

    Raises:
        ValueError: the effect stream is asked for but there are no effects, or likewise the
            general stream.
    """
    allowed = target_simulation_steps(settings.student_steps, settings.shift, settings.tau_max)
    slots = []
    for index in range(settings.batch):
        rng = generator(settings.seed, "plan", round_index, rank, index)
        effect = None
        if rng.random() < settings.p_switch:
            if not settings.effect_weights:
                raise ValueError("p_switch is above 0 but the bank has no effects")
            effect = _pick(rng, settings.effect_weights)
        elif settings.general == 0:
            raise ValueError("p_switch is below 1 but the bank has no general rows")
        rows = settings.general if effect is None else settings.samples[effect]
        slots.append(
            Slot(
                effect=effect,
                sample=int(rng.integers(rows)),
                step=int(rng.integers(settings.student_steps)),
                t=shift_sigma(_open_unit(rng), settings.shift),
                fake_steps=_spread(rng, settings.student_steps, settings.fake_updates),
                fake_ts=tuple(
                    shift_sigma(_open_unit(rng), settings.shift)
                    for _ in range(settings.fake_updates)
                ),
                ts_step=int(rng.choice(allowed)) if allowed else settings.student_steps - 1,
                ts_t=sigma_above(_open_unit(rng), settings.tau_min, settings.shift),
            )
        )
    return slots


def _spread(rng: np.random.Generator, steps: int, updates: int) -> tuple[int, ...]:
    """Steps for the fake-score updates: every step once before any twice."""
    order: list[int] = []
    while len(order) < updates:
        order += rng.permutation(steps).tolist()
    return tuple(order[:updates])


def round_anchors(settings: PlanSettings, round_index: int, rank: int = 0) -> list[AnchorSlot]:
    """TA-FM's own larger batch of a round, effects mixed; empty if ``ta_fm_batch`` is 0."""
    if not settings.effect_weights:
        return []
    anchors = []
    for index in range(settings.ta_fm_batch):
        rng = generator(settings.seed, "anchor", round_index, rank, index)
        effect = _pick(rng, settings.effect_weights)
        sample = int(rng.integers(settings.samples[effect]))
        anchors.append(AnchorSlot(effect, sample, shift_sigma(_open_unit(rng), settings.shift)))
    return anchors


def describe(settings: PlanSettings, rounds: int) -> dict[str, float]:
    """Shares and counts of a plan's first rounds, for ``--dry-run``."""
    slots = [s for r in range(min(rounds, 50)) for s in round_slots(settings, r)]
    return {
        "effect_share": float(np.mean([s.effect is not None for s in slots])),
        "mean_student_step": float(np.mean([s.step for s in slots])),
        "sigmas": float(len(student_sigmas(settings.student_steps, settings.shift))),
    }
