"""Images from others: upright RGB, or a refusal; never anything else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.images import open_image
from tests.unit.malformed.good_bank import write_image


def test_pixels_come_unchanged(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", seed=3, size=(40, 24))
    image = open_image(tmp_path / "a.png")
    assert (image.mode, image.size) == ("RGB", (40, 24))
    expected = np.random.default_rng(3).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(image), expected)


def test_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = open_image(tmp_path / "a.png")
    assert image.size == (16, 32)
    assert np.asarray(image)[:16].min() == 255
    assert np.asarray(image)[16:].max() == 0


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "1"])
def test_other_modes_become_rgb_over_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (16, 16), (0, 0, 0, 0 if mode in ("LA", "RGBA") else 255))
    image.convert(mode).save(tmp_path / "a.png")
    opened = open_image(tmp_path / "a.png")
    assert opened.mode == "RGB"
    assert np.asarray(opened).min() == (255 if mode in ("LA", "RGBA") else 0)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    suffix=st.sampled_from(["png", "jpg", "webp", "bmp"]),
    changes=st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=6),
    keep=st.floats(0, 1),
)
def test_damaged_files_are_opened_or_refused(
    tmp_path: Path, suffix: str, changes: list[tuple[int, int]], keep: float
) -> None:
    good = tmp_path / f"good.{suffix}"
    if not good.exists():
        write_image(good)
    data = bytearray(good.read_bytes())
    for place, value in changes:
        data[place % len(data)] = value
    bad = tmp_path / f"bad.{suffix}"
    bad.write_bytes(data[: int(len(data) * max(keep, 0.5))] if keep < 0.9 else data)
    try:
        image = open_image(bad)
    except ValueError:
        return
    assert image.mode == "RGB"
