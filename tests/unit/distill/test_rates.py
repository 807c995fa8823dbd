"""Learning rates by round."""

import math
from itertools import pairwise

import pytest

from pipeline.distill.rates import RateSettings, rate_at


def test_constant() -> None:
    settings = RateSettings(1e-4, 0, "constant")
    assert {rate_at(settings, r, 50) for r in range(50)} == {1e-4}


def test_warmup_is_linear_and_never_zero() -> None:
    settings = RateSettings(1.0, 4, "constant")
    rates = [rate_at(settings, r, 100) for r in range(7)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_cosine_from_the_peak_to_a_hundredth() -> None:
    settings = RateSettings(2e-3, 0, "cosine")
    rates = [rate_at(settings, r, 101) for r in range(101)]
    assert rates[0] == pytest.approx(2e-3)
    assert rates[-1] == pytest.approx(2e-5)
    assert rates[50] == pytest.approx(2e-3 * 0.505)
    assert rates[25] == pytest.approx(2e-3 * (0.01 + 0.99 * (1 + math.cos(math.pi / 4)) / 2))
    assert all(a > b for a, b in pairwise(rates))


def test_one_round_has_the_peak() -> None:
    assert rate_at(RateSettings(0.5, 0, "cosine"), 0, 1) == 0.5
