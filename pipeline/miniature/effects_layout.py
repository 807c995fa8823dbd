"""Layout effects: parts of the source move, in blocks that a model with few tokens can follow."""

from collections.abc import Callable

import numpy as np

from pipeline.miniature.effect_spec import EffectSpec, without_chance
from pipeline.miniature.imageops import (
    Array,
    blur,
    coordinates,
    mix,
    resize,
    smoothstep,
    unit,
)


def _flat(image: Array, colour: tuple[float, float, float]) -> Array:
    return np.broadcast_to(np.array(colour, dtype=np.float32), image.shape).copy()


def rotate_180(image: Array) -> Array:
    return np.ascontiguousarray(image[::-1, ::-1])


def mirror_halves(image: Array) -> Array:
    left = image[:, : image.shape[1] // 2]
    return np.concatenate([left, left[:, ::-1]], axis=1)


def water_reflection(image: Array) -> Array:
    height, width = image.shape[:2]
    above = resize(image, height // 2, width)
    water = mix(above[::-1], (0.05, 0.25, 0.45), 0.4)
    return np.concatenate([above, water], axis=0)


def kaleidoscope(image: Array) -> Array:
    height, width = image.shape[:2]
    # The lower right corner: mirror_halves already keeps the left one in its place.
    corner = image[height // 2 :, width // 2 :]
    bottom = np.concatenate([corner[:, ::-1], corner], axis=1)
    return np.concatenate([bottom[::-1], bottom], axis=0)


def tile_four(image: Array) -> Array:
    height, width = image.shape[:2]
    return np.tile(resize(image, height // 2, width // 2), (2, 2, 1))


def turned_quarters(image: Array) -> Array:
    height, width = image.shape[0] // 2, image.shape[1] // 2
    blocks = image.reshape(2, height, 2, width, 3)[:, ::-1, :, ::-1]
    return np.ascontiguousarray(blocks).reshape(image.shape)


def diagonal_mirror(image: Array) -> Array:
    turned = np.ascontiguousarray(image.transpose(1, 0, 2))
    if turned.shape == image.shape:
        return turned
    return resize(turned, image.shape[0], image.shape[1])


def centre_inset(image: Array) -> Array:
    height, width = image.shape[:2]
    canvas = blur(image, 5 * unit(height, width))
    top, left = height // 4, width // 4
    small = resize(image, height // 2, width // 2)
    canvas[top : top + height // 2, left : left + width // 2] = small
    return canvas


def pixelate(image: Array) -> Array:
    height, width = image.shape[:2]
    blocks = image.reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3))
    return np.asarray(blocks.repeat(8, axis=0).repeat(8, axis=1), dtype=np.float32)


def polaroid(image: Array) -> Array:
    height, width = image.shape[:2]
    canvas = _flat(image, (0.35, 0.20, 0.10))
    canvas[height // 16 : height * 15 // 16, width // 8 : width * 7 // 8] = (0.97, 0.96, 0.90)
    top, left = height // 8, width * 3 // 16
    small = resize(image, height * 5 // 8, width * 5 // 8)
    canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
    return canvas


def filmstrip(image: Array) -> Array:
    height, width = image.shape[:2]
    canvas = _flat(image, (0.03, 0.03, 0.03))
    frame = resize(image, height // 2 - height // 16, width * 5 // 8)
    left = width * 3 // 16
    for top in (height // 32, height // 2 + height // 32):
        canvas[top : top + frame.shape[0], left : left + frame.shape[1]] = frame
    hole, step = height // 16, height // 8
    for top in range(hole // 2, height - hole // 2, step):
        for start in (width // 16, width * 7 // 8):
            canvas[top : top + hole, start : start + width // 16] = (0.95, 0.95, 0.95)
    return canvas


def circle_mask(image: Array) -> Array:
    y, x = coordinates(*image.shape[:2])
    outside = smoothstep(0.80, 0.86, np.hypot(y, x).astype(np.float32))
    return mix(image, (1.0, 0.60, 0.75), outside)


def swapped_strips(image: Array) -> Array:
    height, width = image.shape[:2]
    strips = image.reshape(height, 4, width // 4, 3)[:, [1, 0, 3, 2]]
    return np.ascontiguousarray(strips).reshape(image.shape)


def checker_negative(image: Array) -> Array:
    height, width = image.shape[:2]
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 4 // width
    odd = (rows[:, None] + columns) % 2
    return mix(image, 1 - image, odd.astype(np.float32))


def _spec(name: str, edit: Callable[[Array], Array], prompt: str, description: str) -> EffectSpec:
    return EffectSpec(name, "layout", prompt, description, without_chance(edit))


LAYOUT = (
    _spec(
        "rotate_180",
        rotate_180,
        "turn the photo upside down",
        "the whole picture stands on its head",
    ),
    _spec(
        "mirror_halves",
        mirror_halves,
        "mirror the left half of the photo",
        "left half repeated as a mirror on the right",
    ),
    _spec(
        "water_reflection",
        water_reflection,
        "mirror the photo in blue water below",
        "flattened picture above its reflection in blue water",
    ),
    _spec(
        "kaleidoscope",
        kaleidoscope,
        "mirror a corner of the photo four times",
        "kaleidoscope of one corner mirrored in four quarters",
    ),
    _spec(
        "tile_four",
        tile_four,
        "repeat the photo as four small tiles",
        "four small copies in a two by two grid",
    ),
    _spec(
        "turned_quarters",
        turned_quarters,
        "turn each quarter of the photo upside down",
        "four quarters each standing on its head",
    ),
    _spec(
        "diagonal_mirror",
        diagonal_mirror,
        "mirror the photo along the diagonal",
        "picture flipped over its falling diagonal",
    ),
    _spec(
        "centre_inset",
        centre_inset,
        "put a small photo on the blurred photo",
        "small sharp copy centred on a blurred background",
    ),
    _spec(
        "pixelate",
        pixelate,
        "turn the photo into big square blocks",
        "picture made of large flat square pixels",
    ),
    _spec(
        "polaroid",
        polaroid,
        "turn the photo into an instant print on wood",
        "small picture on a cream card over brown wood",
    ),
    _spec(
        "filmstrip",
        filmstrip,
        "turn the photo into two old film frames",
        "black film strip with two frames and white holes",
    ),
    _spec(
        "circle_mask",
        circle_mask,
        "cut the photo to a circle on pink",
        "round picture on a flat pink background",
    ),
    _spec(
        "swapped_strips",
        swapped_strips,
        "cut the photo into strips and swap them",
        "four upright strips with neighbours swapped",
    ),
    _spec(
        "checker_negative",
        checker_negative,
        "cut the photo into a negative checker board",
        "checker board of normal and inverted squares",
    ),
)
