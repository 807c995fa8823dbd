"""Textured effects made of loose things laid over the photograph; places differ in each draw."""

import numpy as np

from pipeline.miniature.effect_spec import EffectSpec, Sampler
from pipeline.miniature.imageops import (
    Array,
    blur,
    colour_ramp,
    coordinates,
    disc_coverage,
    luminance,
    mix,
    noise,
    paint,
    rgb,
    smoothstep,
    stroke_coverage,
    unit,
)


def _scatter(image: Array, rng: np.random.Generator, count: int) -> tuple[Array, Array]:
    """Places (y, x) in pixels of `count` things, more on a picture that is not square."""
    height, width = image.shape[:2]
    number = round(count * height * width / min(height, width) ** 2)
    y = rng.uniform(0, height, number).astype(np.float32)
    return y, rng.uniform(0, width, number).astype(np.float32)


def _between(rng: np.random.Generator, like: Array, low: float, high: float) -> Array:
    return rng.uniform(low, high, like.shape).astype(np.float32)


def _pick(
    rng: np.random.Generator, like: Array, colours: list[tuple[float, float, float]]
) -> Array:
    table = np.array(colours, dtype=np.float32)
    return np.asarray(table[rng.integers(len(table), size=like.shape)])


def snow(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    cold = mix(image, (0.55, 0.65, 0.80), 0.45)
    y, x = _scatter(image, rng, 75)
    flakes = disc_coverage(y, x, _between(rng, y, 1.3, 2.3) * px, height, width, 1.2 * px)
    return paint(cold, flakes, np.ones((len(y), 3), np.float32))


def rain(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    gloom = mix(image, (0.10, 0.16, 0.24), 0.6)
    y, x = _scatter(image, rng, 48)
    drops = stroke_coverage(
        y,
        x,
        _between(rng, y, 10, 16) * px,
        np.full_like(y, 1.6 * px),
        _between(rng, y, 1.85, 1.95),
        height,
        width,
    )
    return paint(gloom, drops, np.tile(rgb(0.72, 0.82, 0.95), (len(y), 1)), 0.85)


def confetti(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = _scatter(image, rng, 60)
    bits = stroke_coverage(
        y,
        x,
        _between(rng, y, 5, 7) * px,
        _between(rng, y, 2.6, 3.6) * px,
        _between(rng, y, 0, np.pi),
        height,
        width,
    )
    palette = [(1, 0.1, 0.2), (1, 0.85, 0), (0, 0.75, 0.3), (0.1, 0.45, 1), (1, 0.35, 0.85)]
    return paint(image, bits, _pick(rng, y, palette))


def bokeh(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    evening = blur(image, 1.2 * px) * 0.5
    y, x = _scatter(image, rng, 16)
    discs = disc_coverage(y, x, _between(rng, y, 5, 8.5) * px, height, width, 1.5 * px)
    lights = _pick(rng, y, [(1.0, 0.72, 0.30), (1.0, 0.50, 0.25), (1.0, 0.88, 0.60)])
    glow = np.einsum("nhw,nc->hwc", discs, lights) * 0.5
    # Screen blending: overlapping lights add up without clipping hard.
    return np.asarray(1 - (1 - evening) * np.exp(-glow * 1.3), dtype=np.float32)


def bubbles(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    canvas = mix(image, (0.25, 0.70, 0.80), 0.4)
    y, x = _scatter(image, rng, 17)
    radius = _between(rng, y, 4, 8.5) * px
    outer = disc_coverage(y, x, radius, height, width, px)
    inner = disc_coverage(y, x, radius - 1.8 * px, height, width, px)
    shine = disc_coverage(y - 0.4 * radius, x - 0.4 * radius, radius * 0.25, height, width, px)
    rim = np.clip(outer - inner, 0, 1)
    white = np.ones((len(y), 3), np.float32)
    canvas = paint(canvas, inner, np.tile(rgb(0.75, 0.95, 1.0), (len(y), 1)), 0.25)
    return paint(canvas, np.maximum(rim, shine), white, 0.9)


def fireflies(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    night = colour_ramp(luminance(image), [(0.0, 0.02, 0.10), (0.08, 0.22, 0.38)])
    night = mix(night, image, 0.15)
    y, x = _scatter(image, rng, 22)
    halo = disc_coverage(y, x, _between(rng, y, 2.0, 3.0) * px, height, width, 4 * px)
    core = disc_coverage(y, x, np.full_like(y, 1.3 * px), height, width, px)
    lit = paint(night, halo, np.tile(rgb(0.65, 0.90, 0.10), (len(y), 1)), 0.75)
    return paint(lit, core, np.tile(rgb(1.0, 1.0, 0.65), (len(y), 1)))


def embers(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y_unit, _ = coordinates(height, width)
    heat = colour_ramp((y_unit + 1) / 2, [(0.06, 0.02, 0.03), (0.20, 0.04, 0.02), (0.75, 0.2, 0.0)])
    scene = mix(image * rgb(0.8, 0.5, 0.4), heat, 0.6)
    y, x = _scatter(image, rng, 55)
    # The square root gathers the sparks towards the bottom, where the fire is.
    y = (np.sqrt(y / height) * height).astype(np.float32)
    sparks = stroke_coverage(
        y,
        x,
        _between(rng, y, 3, 6) * px,
        _between(rng, y, 1.6, 2.4) * px,
        _between(rng, y, 1.2, 1.95),
        height,
        width,
    )
    return paint(scene, sparks, _pick(rng, y, [(1, 0.55, 0.05), (1, 0.85, 0.30), (1, 0.30, 0.05)]))


def fog(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    drift = noise(rng, height, width, 7 * unit(height, width), octaves=2)
    thickness = 0.15 + 0.8 * smoothstep(-0.9, 0.9, drift)
    return mix(image, (0.84, 0.86, 0.88), thickness)


def paint_splatter(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = _scatter(image, rng, 11)
    blots = disc_coverage(y, x, _between(rng, y, 4, 7.5) * px, height, width, px)
    # Each blot throws droplets of its own colour.
    throw = np.repeat(np.arange(len(y)), 4)
    angle, reach = _between(rng, y[throw], 0, 2 * np.pi), _between(rng, y[throw], 7, 13) * px
    drop_y, drop_x = y[throw] + reach * np.sin(angle), x[throw] + reach * np.cos(angle)
    drops = disc_coverage(drop_y, drop_x, _between(rng, angle, 1.3, 2.4) * px, height, width, px)
    inks = _pick(rng, y, [(0.95, 0.0, 0.55), (0.95, 0.0, 0.55), (0.08, 0.05, 0.10)])
    return paint(paint(image, blots, inks), drops, inks[throw])


def scratches(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    faded = colour_ramp(luminance(image), [(0.22, 0.20, 0.14), (0.80, 0.77, 0.62)])
    y, x = _scatter(image, rng, 22)
    lines = stroke_coverage(
        y,
        x,
        _between(rng, y, 25, 80) * px,
        _between(rng, y, 1.4, 2.2) * px,
        _between(rng, y, 1.52, 1.62),
        height,
        width,
    )
    return paint(faded, lines, _pick(rng, y, [(0.97, 0.96, 0.88), (0.06, 0.05, 0.03)]))


def brush_strokes(image: Array, rng: np.random.Generator) -> Array:
    height, width = image.shape[:2]
    px = unit(height, width)
    y, x = _scatter(image, rng, 240)
    strokes = stroke_coverage(
        y,
        x,
        _between(rng, y, 10, 15) * px,
        _between(rng, y, 3, 4.5) * px,
        _between(rng, y, -1.0, -0.55),
        height,
        width,
    )
    soft = blur(image, 1.5 * px)
    picked = soft[y.astype(int), x.astype(int)]
    shade = _between(rng, y, -0.22, 0.22)[:, None]
    vivid = luminance(picked)[:, None] + 1.5 * (picked - luminance(picked)[:, None])
    return np.clip(paint(soft, strokes, np.clip(vivid + shade, 0, 1)), 0, 1)


def _spec(name: str, sample: Sampler, prompt: str, description: str) -> EffectSpec:
    return EffectSpec(name, "textured", prompt, description, sample)


PARTICLES = (
    _spec(
        "snow",
        snow,
        "cover the photo with falling snow",
        "cold scene full of round white snow flakes",
    ),
    _spec(
        "rain",
        rain,
        "cover the photo with falling rain",
        "gloomy scene with long slanted rain streaks",
    ),
    _spec(
        "confetti",
        confetti,
        "cover the photo with falling confetti",
        "party of bright paper bits in many colours",
    ),
    _spec(
        "bokeh",
        bokeh,
        "cover the photo with glowing round lights",
        "dim soft evening with large warm light discs",
    ),
    _spec(
        "bubbles",
        bubbles,
        "cover the photo with floating soap bubbles",
        "turquoise scene with white rimmed bubbles",
    ),
    _spec(
        "fireflies",
        fireflies,
        "cover the photo with glowing fireflies at night",
        "blue night with small glowing yellow green dots",
    ),
    _spec(
        "embers",
        embers,
        "cover the photo with glowing fire sparks",
        "dark red heat with orange sparks rising",
    ),
    _spec(
        "fog",
        fog,
        "cover the photo with drifting fog",
        "pale gray fog banks hiding parts of the scene",
    ),
    _spec(
        "paint_splatter",
        paint_splatter,
        "cover the photo with splashes of pink paint",
        "big blots and drops of pink and black paint",
    ),
    _spec(
        "scratches",
        scratches,
        "old film look with many scratches",
        "faded film with long upright black and white scratches",
    ),
    _spec(
        "brush_strokes",
        brush_strokes,
        "turn the photo into an oil paint print",
        "painting of thick slanted brush strokes",
    ),
)
