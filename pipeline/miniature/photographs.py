"""The miniature's photographs: whole photographs are held out for testing, never crops.

Sources and licences are in ``photographs/LICENCES.md``. Every picture that the miniature trains
on or is scored on is a square crop of one of these, drawn by a seeded generator.
"""

from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "test", "fit", "validation"]
FOLDER = Path(__file__).parent / "photographs"
# Recipes are chosen on these, never on the test photographs: "fit" is "train" without them. The
# base has seen them; no effect's pairs and no student's sources have.
VALIDATION = ("astronaut", "china")


@cache
def names(split: Split) -> tuple[str, ...]:
    """Names of the photographs of a split, in a fixed order."""
    if split == "validation":
        return VALIDATION
    if split == "fit":
        return tuple(name for name in names("train") if name not in VALIDATION)
    return tuple(sorted(path.stem for path in (FOLDER / split).glob("*.jpg")))


@cache
def _open(split: Split, name: str) -> Image.Image:
    folder = "test" if split == "test" else "train"
    with Image.open(FOLDER / folder / f"{name}.jpg") as image:
        return image.convert("RGB")


def crop(
    split: Split, name: str, size: int, rng: np.random.Generator, smallest: float = 0.45
) -> NDArray[np.float32]:
    """A random square crop of one photograph, ``[size, size, 3]`` in [0, 1].

    ``smallest`` is the least share of the shorter side that a crop covers.
    """
    image = _open(split, name)
    side = int(min(image.size) * rng.uniform(smallest, 1.0))
    left = int(rng.integers(0, image.width - side + 1))
    top = int(rng.integers(0, image.height - side + 1))
    square = image.resize(
        (size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side)
    )
    if rng.random() < 0.5:
        square = square.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(square, dtype=np.float32) / 255.0


def crops(split: Split, count: int, size: int, seed: int) -> list[tuple[str, NDArray[np.float32]]]:
    """``count`` crops that take the photographs of a split in turn: (photograph, image) pairs."""
    order = names(split)
    return [
        (
            order[i % len(order)],
            crop(split, order[i % len(order)], size, np.random.default_rng([seed, i])),
        )
        for i in range(count)
    ]


def varied(size: int, rng: np.random.Generator, split: Split = "train") -> NDArray[np.float32]:
    """A picture to train the base or a student on: a crop with jittered colours, or dead leaves.

    Eleven photographs are too few to show all colours and edges, so a third of the pictures are
    dead leaves (overlapping discs and boxes, Lee et al. 2001), whose edge and colour statistics
    are those of natural pictures.
    """
    if rng.random() < 0.3:
        picture = _dead_leaves(size, rng)
        if rng.random() < 0.5:
            base = crop(split, rng.choice(names(split)), size, rng)
            mask = _dead_leaves(size, rng)[..., :1] > rng.uniform(0.4, 0.8)
            picture = np.where(mask, picture, base).astype(np.float32)
        return picture
    cut: NDArray[np.floating[Any]]
    cut = crop(split, rng.choice(names(split)), size, rng, smallest=0.3)
    if rng.random() < 0.6:
        gain, bias = rng.uniform(0.6, 1.4, 3), rng.uniform(-0.15, 0.15, 3)
        cut = cut * gain + bias
    if rng.random() < 0.3:
        cut = cut @ (np.eye(3) + rng.normal(0, 0.35, (3, 3)))
    return np.clip(cut, 0, 1).astype(np.float32)


def _dead_leaves(size: int, rng: np.random.Generator) -> NDArray[np.float32]:
    y, x = np.mgrid[0:size, 0:size] / size
    picture = np.broadcast_to(rng.random(3), (size, size, 3)).copy()
    for _ in range(int(rng.integers(10, 60))):
        cx, cy = rng.random(2)
        radius = min(0.5, 0.02 / max(rng.random(), 0.02) ** 0.8)
        angle, aspect = rng.uniform(0, np.pi), rng.uniform(0.3, 1)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = ((y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)) / aspect
        inside = (np.abs(u) + np.abs(v) if rng.random() < 0.3 else np.hypot(u, v)) < radius
        shade = 1 + rng.uniform(-0.5, 0.5) * (u + v)[inside, None] / radius
        picture[inside] = rng.random(3) * shade
    return np.clip(picture, 0, 1).astype(np.float32)
