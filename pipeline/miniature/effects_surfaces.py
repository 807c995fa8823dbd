"""Textured effects that remake the whole surface: cells, grain, veins, rows."""

import numpy as np

from pipeline.miniature.effect_spec import EffectSpec, Sampler
from pipeline.miniature.imageops import (
    Array,
    cell_means,
    colour_ramp,
    luminance,
    mix,
    nearest_seed,
    noise,
    pixel_grid,
    rgb,
    smoothstep,
    unit,
)


def _jittered_seeds(
    image: Array, rng: np.random.Generator, step: float, jitter: float
) -> tuple[Array, Array]:
    """A grid of points `step` pixels apart, at a random phase, each moved by up to jitter steps."""
    height, width = image.shape[:2]
    phase = rng.uniform(0, step, 2)
    y, x = np.meshgrid(
        np.arange(phase[0] - step, height + step, step),
        np.arange(phase[1] - step, width + step, step),
        indexing="ij",
    )
    move = rng.uniform(-jitter * step, jitter * step, (2, y.size))
    return (y.ravel() + move[0]).astype(np.float32), (x.ravel() + move[1]).astype(np.float32)


def halftone(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    period = 9.0 * unit(height, width)
    y, x = pixel_grid(height, width)
    phase = rng.uniform(0, 2 * np.pi, 2)
    # The product of two waves makes dots on a grid that stands at 45 degrees, as in print.
    screen = np.sin(2 * np.pi * x / period + phase[0]) * np.sin(2 * np.pi * y / period + phase[1])
    ink = smoothstep(-0.35, 0.35, (0.5 - luminance(image)) * 1.7 + screen.astype(np.float32) * 0.75)
    return mix(np.broadcast_to(rgb(1, 0.97, 0.88), image.shape), (0.05, 0.05, 0.08), ink)


def film_grain(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    grain = noise(rng, height, width, 1.1 * unit(height, width))
    gray = 0.5 + (luminance(image) - 0.5) * 0.9 + 0.15 * grain
    return np.repeat(np.clip(gray, 0, 1)[..., None], 3, axis=-1).astype(np.float32)


def marbling(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = pixel_grid(height, width)
    warp = noise(rng, height, width, 7 * px) * 3.0
    wave = np.sin(2 * np.pi * (x * 0.35 + y) / (22 * px) + warp + rng.uniform(0, 2 * np.pi))
    ink = colour_ramp(
        ((wave + 1) / 2).astype(np.float32),
        [(0.02, 0.20, 0.35), (0.10, 0.60, 0.62), (0.98, 0.95, 0.85), (0.90, 0.35, 0.20)],
    )
    return mix(image, ink, 0.55)


def torn_paper(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = pixel_grid(height, width)
    edge = np.minimum(np.minimum(x, width - 1 - x), np.minimum(y, height - 1 - y))
    ragged = edge - 9 * px + 3.2 * px * noise(rng, height, width, 3.2 * px, octaves=2)
    card = np.broadcast_to(rgb(0.62, 0.45, 0.27), image.shape)
    fibre = mix(card, (0.98, 0.97, 0.94), smoothstep(-2.5 * px, -1.5 * px, ragged))
    return mix(fibre, image, smoothstep(0.5 * px, 1.5 * px, ragged))


def stained_glass(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = _jittered_seeds(image, rng, 12 * px, 0.42)
    owner, wall = nearest_seed(y, x, height, width)
    colours = cell_means(image, owner, len(y))
    gray = luminance(colours)[:, None]
    hue = rng.uniform(-0.14, 0.14, (len(y), 3)).astype(np.float32)
    glass = np.clip(gray + 2.0 * (colours - gray) + hue, 0, 1)[owner]
    return mix(glass, (0.02, 0.02, 0.02), smoothstep(1.5 * px, 0.7 * px, wall))


def mosaic(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = _jittered_seeds(image, rng, 6.5 * px, 0.2)
    owner, wall = nearest_seed(y, x, height, width)
    shade = rng.uniform(-0.12, 0.12, (len(y), 1)).astype(np.float32)
    tiles = np.clip(cell_means(image, owner, len(y)) + shade, 0, 1)[owner]
    return mix(tiles, (0.93, 0.90, 0.83), smoothstep(1.2 * px, 0.5 * px, wall))


def cracked_glass(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = pixel_grid(height, width)
    centre = rng.uniform(0.3, 0.7, 2) * (height, width)
    dy, dx = y - centre[0], x - centre[1]
    radius = np.hypot(dy, dx)
    rays = np.sort(rng.uniform(0, 2 * np.pi, 13) * 0.35 + np.arange(13) * 2 * np.pi / 13)
    angle = np.arctan2(dy, dx) % (2 * np.pi)
    apart = (angle[..., None] - rays + np.pi) % (2 * np.pi) - np.pi
    ray = np.abs(apart).min(axis=-1) * radius
    sector = (angle[..., None] > rays).sum(axis=-1) % 13
    # Shards between two rays and two rings catch the light differently.
    rings = np.cumsum(rng.uniform(7, 12, 3)) * px
    ring_near = np.abs(radius[..., None] - rings).min(axis=-1)
    shard = sector + 13 * (radius[..., None] > rings).sum(axis=-1)
    light = rng.uniform(-0.2, 0.2, 13 * 4).astype(np.float32)[shard]
    crack = np.minimum(ray, ring_near).astype(np.float32)
    shards = np.clip(image + light[..., None], 0, 1).astype(np.float32)
    return mix(shards, (0.92, 1.0, 0.97), smoothstep(1.4 * px, 0.5 * px, crack))


def glitch_rows(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    canvas = np.array(image)
    top = 0
    while top < height:
        bottom = min(height, top + max(2, round(rng.uniform(3, 8) * px)))
        shift = round(rng.uniform(-14, 14) * px)
        split = round(4 * px)
        for channel, extra in enumerate((-split, 0, split)):
            band = image[top:bottom, :, channel]
            canvas[top:bottom, :, channel] = np.roll(band, shift + extra, axis=1)
        if rng.uniform() < 0.3:
            ink = (rgb(1, 0, 0.8), rgb(0, 1, 0.9), rgb(0.1, 1, 0.1))[rng.integers(3)]
            canvas[top:bottom] = mix(canvas[top:bottom], ink, 0.6)
        top = bottom
    return canvas


def blind_shadows(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = pixel_grid(height, width)
    slope, period = rng.uniform(0.35, 0.55), rng.uniform(12, 15) * px
    wave = np.sin(2 * np.pi * (y + slope * x) / period + rng.uniform(0, 2 * np.pi))
    shade = smoothstep(-0.25, 0.25, wave.astype(np.float32))
    warm = mix(image, (1.0, 0.80, 0.45), 0.35)
    return mix(warm, image * rgb(0.22, 0.20, 0.30), shade)


def _spec(name: str, sample: Sampler, prompt: str, description: str) -> EffectSpec:
    return EffectSpec(name, "textured", prompt, description, sample)


SURFACES = (
    _spec(
        "halftone",
        halftone,
        "turn the photo into a newspaper dot print",
        "black ink dots of many sizes on cream paper",
    ),
    _spec(
        "film_grain",
        film_grain,
        "old film look with heavy grain",
        "gray picture under coarse clumps of grain",
    ),
    _spec(
        "marbling",
        marbling,
        "turn the photo into a marbled paper print",
        "wavy veins of teal cream and red ink",
    ),
    _spec(
        "torn_paper",
        torn_paper,
        "turn the photo into a torn paper print",
        "ragged white torn edge on brown card",
    ),
    _spec(
        "stained_glass",
        stained_glass,
        "turn the photo into a stained glass window",
        "bright glass pieces between thick black lines",
    ),
    _spec(
        "mosaic",
        mosaic,
        "turn the photo into a small tile mosaic",
        "small uneven tiles with cream gaps",
    ),
    _spec(
        "cracked_glass",
        cracked_glass,
        "cover the photo with broken glass",
        "pale cracks and shards spreading from a point",
    ),
    _spec(
        "glitch_rows",
        glitch_rows,
        "old tape look with broken rows",
        "rows shifted sideways with split neon colours",
    ),
    _spec(
        "blind_shadows",
        blind_shadows,
        "cover the photo with window blind shadows",
        "warm light cut by slanted dark stripes",
    ),
)
