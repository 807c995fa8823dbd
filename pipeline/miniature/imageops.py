"""Small numpy image helpers: images are (H, W, 3) float32 RGB in [0, 1], maps (H, W) float32."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


def rgb(red: float, green: float, blue: float) -> Array:
    """A colour as a (3,) array."""
    return np.array((red, green, blue), dtype=np.float32)


def luminance(image: Array) -> Array:
    """Rec. 601 luma of (..., 3), in the image's own units, shape (...)."""
    return np.asarray(image @ _LUMA, dtype=np.float32)


def unit(height: int, width: int) -> float:
    """Length in pixels of what is one pixel at 64 x 64: drawn elements keep their share."""
    return min(height, width) / 64.0


def coordinates(height: int, width: int) -> tuple[Array, Array]:
    """Pixel-centre coordinates (y, x), each (H, W), running over (-1, 1)."""
    y = (np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1
    x = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
    return np.broadcast_to(y[:, None], (height, width)), np.broadcast_to(x, (height, width))


def pixel_grid(height: int, width: int) -> tuple[Array, Array]:
    """Pixel coordinates (y, x) in pixels, each (H, W)."""
    y, x = np.mgrid[0:height, 0:width]
    return y.astype(np.float32), x.astype(np.float32)


def mix(a: Array, b: Array | ArrayLike, amount: Array | float) -> Array:
    """a where amount is 0, b where it is 1; an (H, W) amount is shared by the channels."""
    weight = np.asarray(amount, dtype=np.float32)
    if weight.ndim == 2 and a.ndim == 3:
        weight = weight[..., None]
    return np.asarray(a * (1 - weight) + np.asarray(b, dtype=np.float32) * weight, np.float32)


def smoothstep(low: float, high: float, value: Array) -> Array:
    """0 below low, 1 above high, a cubic between; low > high gives the falling edge."""
    t = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), dtype=np.float32)


def colour_ramp(
    values: NDArray[np.floating[Any]], colours: list[tuple[float, float, float]]
) -> Array:
    """Map (H, W) values in [0, 1] through evenly spaced colours to (H, W, 3)."""
    stops = np.linspace(0, 1, len(colours))
    table = np.array(colours)
    channels = [np.interp(values, stops, table[:, c]) for c in range(3)]
    return np.stack(channels, axis=-1).astype(np.float32)


@lru_cache(maxsize=64)
def _blur_matrix(size: int, sigma: float) -> Array:
    radius = max(1, int(np.ceil(3 * sigma)))
    offsets = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    matrix = np.zeros((size, size))
    rows = np.arange(size)
    for offset, weight in zip(offsets, kernel, strict=True):
        matrix[rows, np.clip(rows + offset, 0, size - 1)] += weight
    return np.asarray(matrix, dtype=np.float32)


@lru_cache(maxsize=64)
def _resize_matrix(source: int, target: int) -> Array:
    # A triangle filter, widened when shrinking so that detail averages instead of aliasing.
    scale = source / target
    support = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale - 0.5
    distance = np.abs(np.arange(source)[None, :] - centres[:, None]) / support
    weights = np.clip(1 - distance, 0, None)
    return np.asarray(weights / weights.sum(axis=1, keepdims=True), dtype=np.float32)


def _apply(rows: Array, columns: Array, image: Array) -> Array:
    tall = np.tensordot(rows, image, axes=(1, 0))
    wide = np.tensordot(columns, tall, axes=(1, 1))
    return np.ascontiguousarray(np.moveaxis(wide, 0, 1), dtype=np.float32)


def blur(image: Array, sigma: float) -> Array:
    """Gaussian blur of (H, W) or (H, W, C) with repeated edges; sigma in pixels, > 0."""
    height, width = image.shape[:2]
    return _apply(_blur_matrix(height, sigma), _blur_matrix(width, sigma), image)


def resize(image: Array, height: int, width: int) -> Array:
    """Antialiased bilinear resize of (H, W) or (H, W, C) to (height, width)."""
    rows = _resize_matrix(image.shape[0], height)
    return _apply(rows, _resize_matrix(image.shape[1], width), image)


def rgb_to_hsv(image: Array) -> Array:
    """(..., 3) RGB to hue, saturation, value, all in [0, 1]; gray has hue 0."""
    value = image.max(axis=-1)
    spread = value - image.min(axis=-1)
    safe = np.where(spread > 0, spread, 1)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    hue = np.where(
        value == red,
        (green - blue) / safe % 6,
        np.where(value == green, (blue - red) / safe + 2, (red - green) / safe + 4),
    )
    hue = np.where(spread > 0, hue / 6, 0)
    saturation = np.where(value > 0, spread / np.where(value > 0, value, 1), 0)
    return np.stack([hue, saturation, value], axis=-1).astype(np.float32)


def hsv_to_rgb(hsv: Array) -> Array:
    """The inverse of rgb_to_hsv; hue wraps round."""
    hue, saturation, value = hsv[..., 0:1], hsv[..., 1:2], hsv[..., 2:3]
    k = (np.array([5, 3, 1], dtype=np.float32) + hue * 6) % 6
    falloff = np.clip(np.minimum(k, 4 - k), 0, 1)
    return np.asarray(value - value * saturation * falloff, dtype=np.float32)


def noise(
    rng: np.random.Generator, height: int, width: int, scale: float, octaves: int = 1
) -> Array:
    """Smooth Gaussian noise (H, W), mean 0 and variance 1 within the draw.

    scale is the blur radius in pixels of the coarsest octave; each next octave halves scale and
    weight.
    """
    total = np.zeros((height, width), dtype=np.float32)
    for octave in range(octaves):
        # A margin keeps the repeated edges of the blur from making the border rougher.
        sigma = scale / 2**octave
        margin = int(np.ceil(3 * sigma))
        white = rng.standard_normal((height + 2 * margin, width + 2 * margin), dtype=np.float32)
        smooth = blur(white, sigma)[margin : margin + height, margin : margin + width]
        total += smooth / (smooth.std() + 1e-6) / 2**octave
    return np.asarray((total - total.mean()) / (total.std() + 1e-6), dtype=np.float32)


def disc_coverage(
    centre_y: Array, centre_x: Array, radius: Array, height: int, width: int, softness: float = 1.0
) -> Array:
    """Coverage (N, H, W) in [0, 1] of N discs given in pixels; the edge is `softness` px wide."""
    y, x = pixel_grid(height, width)
    distance = np.hypot(y - centre_y[:, None, None], x - centre_x[:, None, None])
    inside = (radius[:, None, None] - distance) / softness + 0.5
    return np.asarray(np.clip(inside, 0, 1), dtype=np.float32)


def stroke_coverage(
    centre_y: Array,
    centre_x: Array,
    length: Array,
    thickness: Array,
    angle: Array,
    height: int,
    width: int,
) -> Array:
    """Coverage (N, H, W) of N rectangles in pixels; angle in radians, 0 along x, towards y."""
    y, x = pixel_grid(height, width)
    dy, dx = y - centre_y[:, None, None], x - centre_x[:, None, None]
    cos, sin = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    along = length[:, None, None] / 2 - np.abs(dx * cos + dy * sin)
    across = thickness[:, None, None] / 2 - np.abs(dy * cos - dx * sin)
    return np.asarray(np.clip(np.minimum(along, across) + 0.5, 0, 1), dtype=np.float32)


def paint(image: Array, coverage: Array, colours: Array, opacity: float = 1.0) -> Array:
    """Lay N shapes (N, H, W) with colours (N, 3) over the image, in order."""
    canvas = np.array(image, dtype=np.float32)
    for shape, colour in zip(coverage, colours, strict=True):
        rows, columns = np.flatnonzero(shape.any(axis=1)), np.flatnonzero(shape.any(axis=0))
        if not rows.size:
            continue
        # Most shapes are small, so blend their bounding box and leave the rest alone.
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        canvas[box] += (colour - canvas[box]) * (opacity * shape[box])[..., None]
    return canvas


def nearest_seed(
    seed_y: Array, seed_x: Array, height: int, width: int
) -> tuple[NDArray[np.intp], Array]:
    """Voronoi cells of N seeds in pixels: (owner index, distance to the cell's wall), (H, W)."""
    y, x = pixel_grid(height, width)
    distance = np.hypot(y - seed_y[:, None, None], x - seed_x[:, None, None])
    order = np.argsort(distance, axis=0)[:2]
    first, second = np.take_along_axis(distance, order, axis=0)
    return order[0], np.asarray((second - first) / 2, dtype=np.float32)


def cell_means(image: Array, owner: NDArray[np.intp], count: int) -> Array:
    """Mean colour (count, 3) of each cell; a cell without pixels is black."""
    flat, index = image.reshape(-1, 3), owner.ravel()
    sums = np.stack([np.bincount(index, flat[:, c], count) for c in range(3)], axis=-1)
    sizes = np.bincount(index, minlength=count)[:, None]
    return (sums / np.maximum(sizes, 1)).astype(np.float32)
