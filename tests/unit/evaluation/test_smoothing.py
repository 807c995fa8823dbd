"""A running mean by its definition."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.smoothing import running_mean


@given(st.lists(st.floats(-1e3, 1e3)), st.integers(1, 30))
def test_each_point_is_the_mean_of_those_up_to_it(values: list[float], parts: int) -> None:
    width = max(1, len(values) // parts)
    slow = [fmean(values[max(0, i + 1 - width) : i + 1]) for i in range(len(values))]
    assert running_mean(values, parts) == pytest.approx(slow, abs=1e-6)
