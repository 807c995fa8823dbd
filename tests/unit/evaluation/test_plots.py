"""The pictures of a report: sizes, contents that can be checked, and refusals."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.evaluation.plots import bleed_matrix, contact_sheet, loss_curves


def solid(colour: tuple[float, float, float]) -> np.ndarray:
    return np.broadcast_to(np.array(colour, dtype=np.float32), (64, 64, 3))


def test_contact_sheet_holds_every_picture_twice_as_large() -> None:
    colours = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1)]
    pictures = [solid(c) for c in colours]
    rows = [("first effect", pictures[:3]), ("second effect", pictures[3:])]
    sheet = np.asarray(contact_sheet(rows, ["source", "truth", "student"]))
    for colour in colours:
        assert (sheet == np.array(colour) * 255).all(axis=-1).sum() == 128 * 128
    # Labels and header are drawn in dark ink on white.
    assert (sheet[:, :60] < 100).all(axis=-1).any() and (sheet[:24] < 100).all(axis=-1).any()


def test_contact_sheet_shows_nan_as_black() -> None:
    sheet = np.asarray(contact_sheet([("x", [np.full((64, 64, 3), np.nan)])], ["student"]))
    assert (sheet == 0).all(axis=-1).sum() >= 128 * 128


def test_contact_sheet_refuses_ragged_or_empty_rows() -> None:
    with pytest.raises(ValueError, match="'snow' has 1 pictures, not 2"):
        contact_sheet([("snow", [solid((0, 0, 0))])], ["source", "truth"])
    with pytest.raises(ValueError, match="at least one"):
        contact_sheet([], ["source"])
    with pytest.raises(ValueError, match="H, W, 3"):
        contact_sheet([("snow", [np.zeros((64, 64))])], ["source"])


@pytest.mark.parametrize(("count", "extra"), [(1, 0), (4, 1), (50, 1)])
def test_bleed_matrix_grows_with_the_effects(count: int, extra: int, tmp_path: Path) -> None:
    names = [f"effect_{i}" for i in range(count)]
    columns = names + ["source"] * extra
    bleed_matrix(names, np.eye(count, count + extra), tmp_path / "bleed.png", columns)
    with Image.open(tmp_path / "bleed.png") as image:
        assert image.width > 500 and (count < 50 or image.height > 1400)
        assert (np.asarray(image.convert("RGB"))[..., 2] > np.asarray(image)[..., 0] + 60).any()


def test_bleed_matrix_refuses_another_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 names"):
        bleed_matrix(["a", "b"], np.eye(3), tmp_path / "bleed.png")


def test_loss_curves_survive_gaps_and_empty_series(tmp_path: Path) -> None:
    steps = np.arange(200)
    history = {
        "fake_score": (np.exp(-steps / 40) + 0.01).tolist(),
        "dmd_bs": np.sin(steps).tolist(),
        "ta_fm": [float("nan"), 1.0, 0.5, float("inf")],
        "grad_norm": [],
    }
    loss_curves(history, tmp_path / "losses.png")
    with Image.open(tmp_path / "losses.png") as image:
        assert image.width > 900 and image.height > 400
    with pytest.raises(ValueError, match="no series"):
        loss_curves({}, tmp_path / "none.png")
