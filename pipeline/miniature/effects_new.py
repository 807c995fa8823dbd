"""Four effects beyond the fifty: what a finished collection is asked to learn later (51 to 54)."""

from itertools import pairwise

import numpy as np

from pipeline.miniature.effect_spec import EffectSpec, without_chance
from pipeline.miniature.imageops import (
    Array,
    colour_ramp,
    coordinates,
    disc_coverage,
    luminance,
    mix,
    noise,
    paint,
    pixel_grid,
    resize,
    rgb,
    smoothstep,
    unit,
)


def candy_print(image: Array) -> Array:
    """Plum shadows, hot pink, then mint lights: no order of hues that the tone effects have."""
    ramp = [(0.25, 0.0, 0.30), (1.0, 0.30, 0.55), (0.60, 1.0, 0.80)]
    return colour_ramp(luminance(image), ramp)


def triptych(image: Array) -> Array:
    """The whole photograph three times side by side, squeezed, between dark gaps."""
    height, width = image.shape[:2]
    canvas = np.full_like(image, 0.08)
    gap = max(1, width // 32)
    edges = [round(i * width / 3) for i in range(4)]
    for left, right in pairwise(edges):
        canvas[:, left + gap : right - gap] = resize(image, height, right - left - 2 * gap)
    return canvas


def crayon_hatch(image: Array, rng: np.random.Generator) -> Array:
    """Blue strokes that cross on a pale photograph, the denser the darker it is."""
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = pixel_grid(height, width)
    ink = np.zeros((height, width), np.float32)
    dark = 1 - luminance(image)
    for slope, least in ((1.0, 0.25), (-1.0, 0.55)):
        wobble = 1.2 * noise(rng, height, width, 8 * px)
        across = (x + slope * y) / (10 * px) + rng.uniform(0, 1)
        wave = np.sin(2 * np.pi * across + wobble).astype(np.float32)
        drawn = smoothstep(-0.1, 0.8, wave) * smoothstep(least - 0.2, least + 0.2, dark)
        ink = np.maximum(ink, drawn)
    paper = mix(image, (0.97, 0.97, 0.92), 0.6)
    return mix(paper, (0.1, 0.2, 0.7), ink)


def lantern_lights(image: Array, rng: np.random.Generator) -> Array:
    """Night over the photograph, and big soft orange lights at places of chance."""
    height, width = image.shape[:2]
    px = unit(height, width)
    night = image * rgb(0.35, 0.38, 0.65)
    down, _ = coordinates(height, width)
    night = mix(night, (0.05, 0.04, 0.15), 0.3 * smoothstep(0.2, -1.0, down))
    number = round(9 * height * width / min(height, width) ** 2)
    y = rng.uniform(0, height, number).astype(np.float32)
    x = rng.uniform(0, width, number).astype(np.float32)
    size = rng.uniform(3.5, 6.0, number).astype(np.float32) * px
    glow = disc_coverage(y, x, 1.6 * size, height, width, 4 * px)
    core = disc_coverage(y, x, 0.7 * size, height, width, 2 * px)
    lit = paint(night, glow, np.tile(rgb(1.0, 0.45, 0.05), (number, 1)), 0.75)
    return paint(lit, core, np.tile(rgb(1.0, 0.90, 0.55), (number, 1)))


NEW = (
    EffectSpec(
        "candy_print",
        "tone",
        "turn the photo into a plum and mint print",
        "candy colours from plum through pink to mint",
        without_chance(candy_print),
    ),
    EffectSpec(
        "triptych",
        "layout",
        "repeat the photo three times side by side",
        "three narrow copies next to each other",
        without_chance(triptych),
    ),
    EffectSpec(
        "crayon_hatch",
        "textured",
        "turn the photo into a blue crayon drawing",
        "crossing blue strokes on a pale photo",
        crayon_hatch,
    ),
    EffectSpec(
        "lantern_lights",
        "textured",
        "cover the photo with lanterns at night",
        "soft orange lights floating in the dark",
        lantern_lights,
    ),
)
