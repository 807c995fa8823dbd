"""Tone effects: each output pixel is a function of the source pixel and of its place."""

from collections.abc import Callable

import numpy as np

from pipeline.miniature.effect_spec import EffectSpec, without_chance
from pipeline.miniature.imageops import (
    Array,
    colour_ramp,
    coordinates,
    hsv_to_rgb,
    luminance,
    mix,
    smoothstep,
)


def _ramp(*colours: tuple[float, float, float]) -> Callable[[Array], Array]:
    def edit(image: Array) -> Array:
        return colour_ramp(luminance(image), list(colours))

    return edit


sepia = _ramp((0.10, 0.03, 0.0), (0.52, 0.30, 0.10), (1.0, 0.86, 0.55))
navy_gold = _ramp((0.02, 0.04, 0.35), (0.45, 0.30, 0.30), (1.0, 0.85, 0.10))
magenta_cyan = _ramp((0.75, 0.0, 0.50), (0.55, 0.45, 0.85), (0.20, 1.0, 1.0))
cyanotype = _ramp((0.0, 0.10, 0.30), (0.10, 0.42, 0.72), (0.92, 0.98, 1.0))
emerald_night = _ramp((0.0, 0.03, 0.02), (0.0, 0.32, 0.14), (0.30, 0.95, 0.45))
xray = _ramp((0.85, 0.97, 1.0), (0.18, 0.36, 0.48), (0.0, 0.0, 0.05))
thermal = _ramp(
    (0.0, 0.0, 0.15), (0.45, 0.0, 0.60), (0.95, 0.15, 0.15), (1.0, 0.70, 0.0), (1.0, 1.0, 0.80)
)


def negative(image: Array) -> Array:
    return np.asarray(1 - image, dtype=np.float32)


def vignette(image: Array) -> Array:
    y, x = coordinates(*image.shape[:2])
    light = smoothstep(1.0, 0.3, np.hypot(y, x).astype(np.float32))
    return np.asarray(image * light[..., None], dtype=np.float32)


def posterise(image: Array) -> Array:
    # Steeper than plain rounding, so that the three flat levels show on soft photographs too.
    stretched = np.clip((image - 0.5) * 1.6 + 0.5, 0, 1)
    return np.asarray(np.round(stretched * 2) / 2, dtype=np.float32)


def solarise(image: Array) -> Array:
    return np.asarray(1 - np.abs(2 * image - 1), dtype=np.float32)


def noir(image: Array) -> Array:
    hard = smoothstep(0.3, 0.7, luminance(image))
    return np.repeat(hard[..., None], 3, axis=-1)


def split_tone(image: Array) -> Array:
    light = luminance(image)
    teal = colour_ramp(light, [(0.0, 0.10, 0.15), (0.0, 0.60, 0.60), (0.75, 1.0, 0.95)])
    orange = colour_ramp(light, [(0.20, 0.02, 0.0), (0.90, 0.40, 0.05), (1.0, 0.95, 0.70)])
    _, x = coordinates(*image.shape[:2])
    return mix(teal, orange, (x > 0).astype(np.float32))


def violet_spot(image: Array) -> Array:
    y, x = coordinates(*image.shape[:2])
    violet = colour_ramp(luminance(image), [(0.08, 0.0, 0.16), (0.80, 0.60, 0.95)])
    outside = smoothstep(0.5, 0.65, np.hypot(y, x).astype(np.float32))
    return mix(image, violet, outside)


def sunset(image: Array) -> Array:
    y, _ = coordinates(*image.shape[:2])
    sky = colour_ramp((y + 1) / 2, [(0.30, 0.05, 0.50), (0.95, 0.25, 0.35), (1.0, 0.80, 0.15)])
    return mix(image, sky, 0.55)


def rainbow(image: Array) -> Array:
    _, x = coordinates(*image.shape[:2])
    hue = (x + 1) / 2 * 0.85
    light = luminance(image)
    # Saturation falls as light rises, so that both black and white keep their places.
    saturation = 0.9 - 0.5 * light**2
    return hsv_to_rgb(np.stack([hue, saturation, 0.15 + 0.85 * light], -1).astype(np.float32))


def _spec(name: str, edit: Callable[[Array], Array], prompt: str, description: str) -> EffectSpec:
    return EffectSpec(name, "tone", prompt, description, without_chance(edit))


TONE = (
    _spec(
        "sepia",
        sepia,
        "turn the photo into an old brown print",
        "a sepia photo in warm brown tones",
    ),
    _spec(
        "navy_gold",
        navy_gold,
        "turn the photo into a navy and gold print",
        "two ink print with navy shadows and gold lights",
    ),
    _spec(
        "magenta_cyan",
        magenta_cyan,
        "turn the photo into a magenta and cyan print",
        "two ink print with magenta shadows and cyan lights",
    ),
    _spec(
        "cyanotype",
        cyanotype,
        "turn the photo into a blue sun print",
        "a cyanotype in deep blue and white",
    ),
    _spec(
        "emerald_night",
        emerald_night,
        "give the photo an emerald night look",
        "dark scene glowing in emerald green",
    ),
    _spec(
        "xray",
        xray,
        "give the photo an x ray look",
        "pale blue inverted x ray picture on black",
    ),
    _spec(
        "thermal",
        thermal,
        "give the photo a heat camera look",
        "heat map from dark purple through red to yellow",
    ),
    _spec(
        "negative",
        negative,
        "turn the photo into a film negative",
        "all colours inverted like a film negative",
    ),
    _spec(
        "vignette",
        vignette,
        "give the photo a dark round edge",
        "bright middle fading to black corners",
    ),
    _spec(
        "posterise",
        posterise,
        "turn the photo into a flat poster print",
        "poster with a few flat hard colours",
    ),
    _spec(
        "solarise",
        solarise,
        "give the photo a strange solar look",
        "solar colours with bright parts folded to dark",
    ),
    _spec(
        "noir",
        noir,
        "give the photo an old film noir look",
        "hard black and white with deep shadows",
    ),
    _spec(
        "split_tone",
        split_tone,
        "colour the photo half teal half orange",
        "left half teal and right half orange",
    ),
    _spec(
        "violet_spot",
        violet_spot,
        "colour the photo violet around a round spot",
        "violet picture with a round spot of true colour",
    ),
    _spec(
        "sunset",
        sunset,
        "colour the photo with a sunset sky wash",
        "purple top melting into an orange yellow bottom",
    ),
    _spec(
        "rainbow",
        rainbow,
        "colour the photo with a rainbow wash",
        "rainbow colours running from left to right",
    ),
)
