"""Picture sizes: buckets of multiples of 32, sources as the stock pipelines size them."""

import pytest
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from hypothesis import given
from hypothesis import strategies as st

from pipeline.models.geometry import fit_area, fit_kontext, fit_long_side

# Of the pictures that `images.open_image` lets in, those no longer than 8 times their width.
sides = st.integers(64, 8000)
sizes = st.tuples(sides, sides).filter(lambda size: max(size) <= 8 * min(size))


@given(size=sizes, side=st.sampled_from([64, 512, 1024]))
def test_a_bucket_has_the_long_side_and_the_aspect_ratio(size: tuple[int, int], side: int) -> None:
    fitted = fit_long_side(side, *size)
    assert max(fitted) == side
    assert all(length % 32 == 0 and length > 0 for length in fitted)
    # The short side is the nearest multiple of 32.
    short, long = min(size), max(size)
    exact = side * short / long
    assert abs(min(fitted) - exact) <= 16 or min(fitted) == 32
    assert fit_long_side(side, *size[::-1]) == fitted[::-1]


@pytest.mark.parametrize("ratio", [1.0, 3 / 2, 2 / 3, 16 / 9, 9 / 16, 4 / 3, 2.39])
def test_sources_are_of_the_stock_size(ratio: float) -> None:
    width, height = round(3000 * ratio), 3000
    assert fit_area(1024, width, height) == calculate_dimensions(1024**2, width / height)


def test_common_buckets_at_full_size() -> None:
    common = {(4000, 3000): (1024, 768), (3000, 2000): (1024, 672), (1080, 1920): (576, 1024)}
    assert {size: fit_long_side(1024, *size) for size in common} == common
    assert fit_kontext(1024, 3000, 2000) == (1248, 832)
