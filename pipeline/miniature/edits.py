"""The general edits: what the miniature's base model can do before any effect is taught.

They play the part of the published general stream's instructions: photographs with
machine-written instructions, no target kept. No effect of ``effects.py`` repeats one of them.
Strengths are drawn at random where it makes sense, so that the base has seen varied colour
maps, rearrangements and random overlays: a base that has not cannot be taught effects by a
LoRA of 20 pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# float32 in practice; numpy's types call a float32 array over a Python number float64.
Image = NDArray[np.floating[Any]]
Edit = Callable[[Image, np.random.Generator], Image]


@dataclass(frozen=True)
class GeneralEdit:
    """One instruction family: its wordings and its true sampler on ``[H, W, 3]`` in [0, 1]."""

    name: str
    wordings: tuple[str, ...]
    apply: Edit


def _gray(x: Image) -> Image:
    return x @ np.array([0.299, 0.587, 0.114], dtype=np.float32)


def _blur(x: Image, passes: int) -> Image:
    for _ in range(passes):
        p = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
        x = (p[:-2] + 2 * p[1:-1] + p[2:]) / 4
        x = (x[:, :-2] + 2 * x[:, 1:-1] + x[:, 2:]) / 4
    return x


def _saturate(x: Image, k: float) -> Image:
    gray = _gray(x)[..., None]
    return gray + (x - gray) * k


def _turn_hue(x: Image, rng: np.random.Generator) -> Image:
    return np.roll(x, 1, axis=-1)


def _invert_green(x: Image, rng: np.random.Generator) -> Image:
    y = x.copy()
    y[..., 1] = 1 - y[..., 1]
    return y


def _zoom_in(x: Image, rng: np.random.Generator) -> Image:
    h, w = x.shape[:2]
    rows = np.arange(h) // 2 + h // 4
    cols = np.arange(w) // 2 + w // 4
    return _blur(x[rows][:, cols], 1)


def _shrink(x: Image) -> Image:
    h, w = x.shape[:2]
    small: Image = x.reshape(h // 2, 2, w // 2, 2, 3).mean((1, 3))
    return small


def _zoom_out(x: Image, rng: np.random.Generator) -> Image:
    h, w = x.shape[:2]
    y = np.full_like(x, 0.5)
    y[h // 4 : h // 4 + h // 2, w // 4 : w // 4 + w // 2] = _shrink(x)
    return y


def _noise(x: Image, rng: np.random.Generator) -> Image:
    return x + _blur(rng.normal(0, 0.35, x.shape).astype(np.float32), 1)


def _dots(x: Image, rng: np.random.Generator) -> Image:
    h, w = x.shape[:2]
    rows, cols = np.mgrid[0:h, 0:w]
    y = x.copy()
    for _ in range(int(rng.integers(4, 9))):
        cy, cx, r = rng.uniform(0, h), rng.uniform(0, w), rng.uniform(0.03, 0.06) * h
        y[(rows - cy) ** 2 + (cols - cx) ** 2 < r * r] = 0.05
    return y


def _lines(x: Image, rng: np.random.Generator) -> Image:
    h, w = x.shape[:2]
    rows, cols = np.mgrid[0:h, 0:w]
    y = x.copy()
    for _ in range(int(rng.integers(3, 6))):
        angle, offset = rng.uniform(0, np.pi), rng.uniform(-0.4, 0.4) * h
        distance = (rows - h / 2) * np.cos(angle) + (cols - w / 2) * np.sin(angle) - offset
        y[np.abs(distance) < 1.0] = 0.95
    return y


def _frame(x: Image, rng: np.random.Generator) -> Image:
    h, w = x.shape[:2]
    k = h // 10
    y = np.full_like(x, 0.97)
    y[k : h - k, k : w - k] = x[k : h - k, k : w - k]
    return y


def _bar(x: Image, rng: np.random.Generator) -> Image:
    y = x.copy()
    y[-x.shape[0] // 4 :] = 0.03
    return y


def _ramp(x: Image, axis: int, k: float) -> Image:
    ramp = np.linspace(1, 0, x.shape[axis], dtype=np.float32)
    ramp = ramp[:, None, None] if axis == 0 else ramp[None, :, None]
    return x + k * ramp if k > 0 else x * (1 + k * ramp)


_EDITS: list[tuple[str, tuple[str, ...], Edit]] = [
    ("keep", ("keep the photo as it is", "change nothing"), lambda x, r: x),
    ("brighten", ("make it brighter", "brighten the photo"), lambda x, r: x * 1.25 + 0.1),
    ("darken", ("make it darker", "darken the photo"), lambda x, r: x * 0.6),
    (
        "contrast",
        ("more contrast please", "raise the contrast"),
        lambda x, r: (x - 0.5) * 1.7 + 0.5,
    ),
    ("flat", ("less contrast please", "make it flat and soft"), lambda x, r: (x - 0.5) * 0.5 + 0.5),
    ("vivid", ("more vivid colours", "saturate the colours"), lambda x, r: _saturate(x, 1.9)),
    ("pale", ("pale colours", "make the colours weaker"), lambda x, r: _saturate(x, 0.4)),
    (
        "warm",
        ("make it warmer", "a warm light"),
        lambda x, r: x * np.array([1.2, 1.0, 0.7], np.float32),
    ),
    (
        "cool",
        ("make it cooler", "a cold light"),
        lambda x, r: x * np.array([0.7, 0.95, 1.25], np.float32),
    ),
    ("hue", ("turn all the hues", "change every colour to the next"), _turn_hue),
    ("swap_rb", ("swap red and blue", "blue for red and red for blue"), lambda x, r: x[..., ::-1]),
    ("swap_gb", ("swap green and blue", "blue for green"), lambda x, r: x[..., [0, 2, 1]]),
    ("invert_green", ("invert the green", "turn green to its opposite"), _invert_green),
    ("gamma", ("lift the shadows", "open the dark parts"), lambda x, r: np.maximum(x, 0) ** 0.55),
    ("mirror", ("mirror the photo", "flip it left to right"), lambda x, r: x[:, ::-1]),
    ("left", ("turn it to the left", "a quarter turn left"), lambda x, r: np.rot90(x)),
    ("right", ("turn it to the right", "a quarter turn right"), lambda x, r: np.rot90(x, -1)),
    ("zoom_in", ("zoom in", "come closer to the middle"), _zoom_in),
    ("zoom_out", ("zoom out", "make it small on gray"), _zoom_out),
    (
        "roll_up",
        ("move it up by half", "shift the photo up"),
        lambda x, r: np.roll(x, -x.shape[0] // 2, 0),
    ),
    (
        "roll_left",
        ("move it left by half", "shift the photo left"),
        lambda x, r: np.roll(x, -x.shape[1] // 2, 1),
    ),
    ("blur", ("blur the photo", "make it soft"), lambda x, r: _blur(x, 6)),
    ("sharpen", ("sharpen the photo", "crisp details"), lambda x, r: x + 1.5 * (x - _blur(x, 2))),
    ("noise", ("add noise", "a noisy photo"), _noise),
    ("dots", ("add dark dots", "a few dark spots on the photo"), _dots),
    ("lines", ("add white lines", "a few thin lines on the photo"), _lines),
    ("frame", ("a white frame", "put it in a white border"), _frame),
    ("bar", ("a black bar at the bottom", "cover the bottom in black"), _bar),
    (
        "dark_left",
        ("darken the left side", "a shadow from the left"),
        lambda x, r: _ramp(x, 1, -0.85),
    ),
    ("light_top", ("lighten the top", "light from the top"), lambda x, r: _ramp(x, 0, 0.6)),
]

GENERAL_EDITS: dict[str, GeneralEdit] = {
    name: GeneralEdit(name, wordings, apply) for name, wordings, apply in _EDITS
}


def apply_edit(name: str, image: Image, rng: np.random.Generator) -> NDArray[np.float32]:
    """One true sample of a general edit, ``[H, W, 3]`` clipped to [0, 1]."""
    return np.clip(GENERAL_EDITS[name].apply(image, rng), 0, 1).astype(np.float32)
