"""Guidance 1 is none: the unconditional half is not computed, and no number changes."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.unit.distill.halves import PLAN, Collection


@pytest.mark.parametrize(("p_switch", "both", "one"), [(1.0, 13, 11), (0.0, 10, 9)])
def test_the_unconditional_half_is_left_out(
    collection: Collection, p_switch: float, both: int, one: int
) -> None:
    plan = replace(PLAN, p_switch=p_switch)
    lean, full = collection.worker(plan), collection.worker(plan)
    # The next number above 1 takes the guided path; in fp32 it is 1.
    lean.guidance, full.guidance = 1.0, math.nextafter(1.0, 2.0)
    for r in range(3):
        ours, reference = lean.roll(r, 0, 0), full.roll(r, 0, 0)
        assert ours.teacher_forwards.tolist() == [one] * PLAN.batch
        assert reference.teacher_forwards.tolist() == [both] * PLAN.batch
        for name, expected in reference.columns().items():
            if name not in ("teacher_forwards", "seconds"):
                np.testing.assert_allclose(getattr(ours, name), expected, rtol=0, atol=2e-6)
        assert np.abs(ours.teacher_x0).mean() > 0.1
