"""Picture sizes and token shapes, from a model folder's configuration alone.

All sizes are (width, height) in pixels. An edit is made at the aspect ratio of its last source,
with the model's side as its long side: rows of one aspect ratio are one bucket. What the network
sees of a source is sized as the stock pipeline sizes it, whatever the size of the edit.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# (frames, rows, columns) of one picture's tokens.
TokenShape = tuple[int, int, int]
Size = tuple[int, int]

SIZES_FILE = "collection_sizes.json"
MULTIPLE = 32

# FluxKontextPipeline's preferred sizes: widths and heights are each other's reverse.
_KONTEXT_NARROW = (672, 688, 720, 752, 800, 832, 880, 944)
_KONTEXT_WIDE = (1104, 1184, 1248, 1328, 1392, 1456, 1504, 1568)
_KONTEXT_WIDTHS = (*_KONTEXT_NARROW, 1024, *_KONTEXT_WIDE)
_KONTEXT_SIDE, _KONTEXT_MULTIPLE = 1024, 16


@dataclass(frozen=True)
class ImageSizes:
    """About how large pictures are, in pixels a side: edited, and shown to the text encoder.

    The defaults are the stock pipelines' constants. square: the base has seen square pictures
    alone, and makes no good ones of another shape.
    """

    side: int = 1024
    condition_side: int = 384
    square: bool = False


def image_sizes(folder: Path) -> ImageSizes:
    """A model folder's picture sizes; the stock pipeline's where the folder says nothing."""
    path = folder / SIZES_FILE
    return ImageSizes(**json.loads(path.read_text())) if path.exists() else ImageSizes()


def fit_area(side: int, width: int, height: int) -> Size:
    """Multiples of 32, of about ``side`` squared pixels, same aspect ratio."""
    ratio = width / height
    w = math.sqrt(side * side * ratio)
    return _multiple(w), _multiple(w / ratio)


def fit_long_side(side: int, width: int, height: int) -> Size:
    """Multiples of 32, the longer one ``side``, same aspect ratio: an edit's bucket."""
    scale = side / max(width, height)
    return _multiple(width * scale), _multiple(height * scale)


def kontext_sizes(side: int) -> list[Size]:
    """FluxKontextPipeline's preferred sizes, brought from 1024 px to ``side``."""

    def scaled(length: int) -> int:
        steps = round(length * side / _KONTEXT_SIDE / _KONTEXT_MULTIPLE)
        return max(1, steps) * _KONTEXT_MULTIPLE

    pairs = zip(_KONTEXT_WIDTHS, reversed(_KONTEXT_WIDTHS), strict=True)
    return [(scaled(w), scaled(h)) for w, h in pairs]


def fit_kontext(side: int, width: int, height: int) -> Size:
    """The preferred size nearest in aspect ratio, as FluxKontextPipeline picks it."""
    ratio = width / height
    _, w, h = min((abs(ratio - w / h), w, h) for w, h in kontext_sizes(side))
    return w, h


@dataclass(frozen=True)
class Geometry:
    """How a model sizes pictures.

    fit_source: the stock pipeline's rule, ``(side, width, height) -> size``; pixels: a token's
    side.
    """

    sizes: ImageSizes
    fit_source: Callable[[int, int, int], Size]
    pixels: int

    def target(self, size: Size) -> Size:
        """The size at which a picture of this aspect ratio is edited."""
        return fit_long_side(self.sizes.side, *size)

    def source(self, size: Size) -> Size:
        """The size at which a source picture is encoded."""
        return self.fit_source(self.sizes.side, *size)

    def condition(self, size: Size) -> Size:
        """The size at which a text encoder that reads pictures sees one."""
        return fit_area(self.sizes.condition_side, *size)

    def tokens(self, size: Size) -> TokenShape:
        """The token shape of a picture of exactly this size."""
        width, height = size
        return 1, height // self.pixels, width // self.pixels


def _multiple(length: float) -> int:
    return max(MULTIPLE, round(length / MULTIPLE) * MULTIPLE)
