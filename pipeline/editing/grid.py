"""Edits beside their sources, in one picture to be looked at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.editing.files import Edit
from pipeline.evaluation.plots import Picture, contact_sheet
from pipeline.images import open_image

# More rows or columns than these are left to the single files.
ROWS, COLUMNS, CELL = 40, 24, 256


def grid(edits: Sequence[Edit]) -> Image.Image:
    """A row a source: the source, then its edits; as many as can be looked at."""
    by_source: dict[Path, list[Edit]] = {}
    for edit in edits:
        by_source.setdefault(edit.source, []).append(edit)
    first = next(iter(by_source.values()))[:COLUMNS]
    seeds = len({edit.seed for edit in first}) > 1
    columns = [" + ".join(e.effects) + (f" ({e.seed})" if seeds else "") for e in first]
    rows = []
    for source, own in list(by_source.items())[:ROWS]:
        made = [_cell(Image.open(edit.out)) for edit in own[:COLUMNS]]
        rows.append((source.stem, [_cell(open_image(source), made[0].shape[:2]), *made]))
    return contact_sheet(rows, ["source", *columns], scale=1)


def _cell(image: Image.Image, shape: Sequence[int] | None = None) -> Picture:
    """A picture ``(H, W, 3)`` in [0, 1], its long side ``CELL``; or of a given shape."""
    if shape is None:
        scale = CELL / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    else:
        size = (shape[1], shape[0])
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32) / 255
