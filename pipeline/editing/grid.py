"""Edits beside their sources, in one picture to be looked at."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.editing.files import Edit
from pipeline.editing.jobs import prepare
from pipeline.evaluation.plots import Picture, contact_sheet
from pipeline.images import open_image
from pipeline.models.geometry import Geometry, Size

# More rows or columns than these are left to the single files.
ROWS, COLUMNS, CELL = 40, 24, 256


def grid(edits: Sequence[Edit], geometry: Geometry) -> Image.Image:
    """A row a source: the source, then its edits; as many as can be looked at."""
    by_source: dict[Path, list[Edit]] = {}
    for edit in edits:
        by_source.setdefault(edit.source, []).append(edit)
    first = next(iter(by_source.values()))[:COLUMNS]
    seeds = len({edit.seed for edit in first}) > 1
    columns = [" + ".join(e.effects) + (f" ({e.seed})" if seeds else "") for e in first]
    rows = []
    for source, own in list(by_source.items())[:ROWS]:
        photograph = prepare(open_image(source), geometry)
        # An edit's sides are multiples of 32: all are shown in the photograph's own shape.
        scale = CELL / max(photograph.size)
        size = (max(1, round(photograph.width * scale)), max(1, round(photograph.height * scale)))
        made = [_cell(Image.open(edit.out), size) for edit in own[:COLUMNS]]
        rows.append((source.stem, [_cell(photograph, size), *made]))
    return contact_sheet(rows, ["source", *columns], scale=1)


def _cell(image: Image.Image, size: Size) -> Picture:
    """A picture ``(H, W, 3)`` in [0, 1]."""
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float32) / 255
