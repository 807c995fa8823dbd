"""Schedules and bounds: method.md's numbers, and independent slow code."""

from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distill.schedule import (
    add_noise,
    as_sigma,
    predict_x0,
    shift_sigma,
    sigma_above,
    student_sigmas,
    target_simulation_steps,
    teacher_sigmas,
)
from pipeline.plan import PlanSettings, round_slots


def test_the_eight_steps_are_method_mds() -> None:
    expected = [1, 0.9545, 0.9, 0.8333, 0.75, 0.6429, 0.5, 0.3]
    assert student_sigmas(8, 3.0) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 30])
@pytest.mark.parametrize("shift", [1, 3, 7])
def test_schedules_equal_exact_fractions(steps: int, shift: int) -> None:
    exact = []
    for k in range(steps):
        u = Fraction(steps - k, steps)
        exact.append(float(shift * u / (1 + (shift - 1) * u)))
    assert student_sigmas(steps, shift) == pytest.approx(exact, abs=1e-12)
    assert teacher_sigmas(steps, shift) == pytest.approx([*exact, 0.0], abs=1e-12)


def test_no_steps_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        student_sigmas(0, 3.0)


def test_the_published_bound_keeps_8333_and_75_out() -> None:
    sigmas = student_sigmas(8, 3.0)
    allowed = [sigmas[i] for i in target_simulation_steps(8, 3.0, 0.75)]
    assert allowed == pytest.approx([0.642857, 0.5, 0.3], abs=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    steps=st.integers(1, 40),
    shift=st.floats(1, 20),
    tau_max=st.floats(0.02, 1),
    share=st.floats(0, 0.999),
    seed=st.integers(0, 2**31 - 1),
    round_index=st.integers(0, 10**6),
)
def test_every_timestep_keeps_its_bound(
    steps: int, shift: float, tau_max: float, share: float, seed: int, round_index: int
) -> None:
    tau_min = tau_max * share * 0.999
    plan = PlanSettings(
        seed, 3, 0.5, 3, steps, shift, tau_max, tau_min, 2, (1.0, 2.0), (3, 1), general=2
    )
    sigmas = student_sigmas(steps, shift)
    assert all(0 < s <= 1 for s in sigmas)
    assert all(a > b for a, b in pairwise(sigmas))
    for slot in round_slots(plan, round_index):
        # Where no step lies below tau_max the recipe is refused; the plan then takes the last.
        if sigmas[-1] < tau_max:
            assert sigmas[slot.ts_step] < tau_max
        else:
            assert slot.ts_step == steps - 1
        assert tau_min < slot.ts_t < 1
        assert all(0 < t < 1 for t in (slot.t, *slot.fake_ts))


def _ks(a: np.ndarray, b: np.ndarray) -> float:
    """The largest distance of two samples' distribution functions."""
    both = np.sort(np.concatenate([a, b]))
    ranks = [np.searchsorted(np.sort(x), both, side="right") / len(x) for x in (a, b)]
    return float(np.abs(ranks[0] - ranks[1]).max())


@pytest.mark.parametrize(("tau_min", "shift"), [(0.5, 3.0), (0.2, 3.0), (0.7, 1.0), (0.5, 8.0)])
def test_sigma_above_is_the_draw_conditioned_on_the_bound(tau_min: float, shift: float) -> None:
    rng = np.random.default_rng(0)
    free = np.array([shift_sigma(u, shift) for u in rng.random(40_000)])
    rejected = free[free > tau_min]
    ours = np.array([sigma_above(u, tau_min, shift) for u in rng.random(40_000)])
    # The 0.1 % bound of Kolmogorov and Smirnov.
    bound = 1.95 * np.sqrt(1 / len(ours) + 1 / len(rejected))
    assert _ks(ours, rejected) < bound
    if shift > 1:
        # The test can tell: plainly uniform draws above the bound are another distribution.
        uniform = tau_min + (1 - tau_min) * rng.random(40_000)
        assert _ks(uniform, rejected) > 2 * bound


def test_noising_and_prediction_undo_each_other() -> None:
    x0, noise = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    t = as_sigma([0.1, 0.5, 1.0])
    x_t = add_noise(x0, noise, t)
    for b, sigma in enumerate([0.1, 0.5, 1.0]):
        for n in range(4):
            for c in range(5):
                slow = (1 - sigma) * float(x0[b, n, c]) + sigma * float(noise[b, n, c])
                assert float(x_t[b, n, c]) == pytest.approx(slow, abs=1e-6)
    assert torch.allclose(predict_x0(x_t, noise - x0, t), x0, atol=1e-6)
