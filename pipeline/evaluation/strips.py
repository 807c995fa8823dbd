"""Strips: a method's outputs for some photographs side by side, in one file that names them.

What is compared must be the same photographs, so a strip carries their names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from pipeline.storage import write_atomic

Picture = NDArray[np.floating[Any]]

# The "method" of the unedited photographs.
SOURCE = "source"
_LONGEST = 256
_NAMES = "photographs"


@dataclass(frozen=True)
class Strip:
    """Pictures by photograph, in order."""

    photographs: tuple[str, ...]
    pictures: tuple[Image.Image, ...]


def strip_folder(of_sources: bool) -> str:
    """Where a run's artifacts have its strips, and those of the photographs."""
    return "strips/source" if of_sources else "strips/output"


def write_strip(path: Path, photographs: Sequence[str], pictures: Sequence[Picture]) -> None:
    """Save pictures ``[H, W, 3]`` in [0, 1] edge to edge, none longer than 256 px, as PNG."""
    images = [_small(np.nan_to_num(np.asarray(p, dtype=np.float32))) for p in pictures]
    strip = Image.new("RGB", (sum(i.width for i in images), max(i.height for i in images)))
    left, edges = 0, []
    for image in images:
        strip.paste(image, (left, 0))
        edges.append([left, image.width, image.height])
        left += image.width
    info = PngInfo()
    info.add_text(_NAMES, json.dumps([list(photographs), edges]))
    write_atomic(path, lambda place: strip.save(place, pnginfo=info))


def read_strip(path: Path) -> Strip:
    """A strip's pictures with their photographs' names.

    Raises:
        ValueError: not a strip.
    """
    with Image.open(path) as image:
        try:
            names, edges = json.loads(image.info[_NAMES])
            boxes = [(int(x), 0, int(x + w), int(h)) for x, w, h in edges]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a strip of named photographs") from error
        whole = image.convert("RGB")
    return Strip(tuple(map(str, names)), tuple(whole.crop(box) for box in boxes))


def _small(picture: Picture) -> Image.Image:
    image = Image.fromarray((np.clip(picture, 0, 1) * 255 + 0.5).astype(np.uint8))
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    return image
