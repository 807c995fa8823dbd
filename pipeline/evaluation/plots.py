"""Pictures of a report: contact sheet, bleed matrix, loss curves. No pyplot, no global state."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from pipeline.evaluation.smoothing import running_mean

Picture = NDArray[np.floating[Any]]

_INK = "#222222"
_RAW, _SMOOTH = "#c3d3e6", "#1f4e8c"
_GAP = 6
_ANNOTATED_UP_TO = 12


def _font(size: int) -> ImageFont.FreeTypeFont:
    # matplotlib always brings DejaVu Sans; a machine may have no other font.
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)


def _as_image(picture: Picture, scale: int) -> Image.Image:
    clean = np.nan_to_num(np.asarray(picture, dtype=np.float32))
    if clean.ndim != 3 or clean.shape[2] != 3:
        raise ValueError(f"a picture must be (H, W, 3), not {clean.shape}")
    image = Image.fromarray((np.clip(clean, 0, 1) * 255 + 0.5).astype(np.uint8))
    size = (image.width * scale, image.height * scale)
    return image.resize(size, Image.Resampling.BICUBIC)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[Picture]]], columns: Sequence[str], scale: int = 2
) -> Image.Image:
    """One row a label, one picture a column, under a header of column names.

    Pictures are (H, W, 3) in [0, 1], NaN shown black, enlarged `scale` times. Raises ValueError
    when there are no rows or a row has not one picture for each column.
    """
    if not rows or not columns:
        raise ValueError("a contact sheet needs at least one row and one column")
    for label, pictures in rows:
        if len(pictures) != len(columns):
            raise ValueError(f"row {label!r} has {len(pictures)} pictures, not {len(columns)}")
    cells = [[_as_image(p, scale) for p in pictures] for _, pictures in rows]
    font = _font(13)
    margin = max(font.getlength(label) for label, _ in rows) + 2 * _GAP
    left = math.ceil(margin)
    widest = max(image.width for row in cells for image in row)
    pitch = max(widest, math.ceil(max(font.getlength(name) for name in columns))) + _GAP
    top = 13 + 2 * _GAP
    height = top + sum(max(image.height for image in row) + _GAP for row in cells)
    sheet = Image.new("RGB", (left + pitch * len(columns), height), "white")
    draw = ImageDraw.Draw(sheet)
    for c, name in enumerate(columns):
        middle = left + pitch * c + (pitch - _GAP) / 2
        draw.text((middle, top / 2), name, fill=_INK, font=font, anchor="mm")
    for (label, _), row in zip(rows, cells, strict=True):
        tall = max(image.height for image in row)
        draw.text((left - _GAP, top + tall / 2), label, fill=_INK, font=font, anchor="rm")
        for c, image in enumerate(row):
            start = left + pitch * c + (pitch - _GAP - image.width) // 2
            sheet.paste(image, (start, top + (tall - image.height) // 2))
        top += tall + _GAP
    return sheet


def bleed_matrix(
    names: Sequence[str],
    matrix: Picture,
    path: Path | str,
    columns: Sequence[str] | None = None,
    title: str = "Which effect happened",
) -> None:
    """Save a heat map: row = effect asked for, column = effect that happened, shares in [0, 1].

    `columns` names the columns when they are not the rows' names, such as with 'source' added.
    Shares are written into the cells up to 12 rows. Raises ValueError when the matrix does not
    have one row a name and one column a column name.
    """
    across = list(names if columns is None else columns)
    shares = np.asarray(matrix, dtype=np.float64)
    if shares.shape != (len(names), len(across)) or not shares.size:
        raise ValueError(f"{shares.shape} matrix for {len(names)} names x {len(across)} columns")
    size = 3.2 + 0.2 * max(len(across), 10)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    type_size = 7.5 if len(across) > _ANNOTATED_UP_TO else 9
    axes.set_xticks(range(len(across)), across, rotation=90, fontsize=type_size)
    axes.set_yticks(range(len(names)), names, fontsize=type_size)
    # Thin lines between the cells lead the eye from a mark to its two names.
    axes.set_xticks(np.arange(len(across) + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="#e3e3e3", linewidth=0.4)
    axes.tick_params(which="both", length=0)
    axes.set_xlabel("effect that happened")
    axes.set_ylabel("effect asked for")
    axes.set_title(title, fontsize=11, color=_INK)
    if len(names) <= _ANNOTATED_UP_TO:
        for (row, column), share in np.ndenumerate(shares):
            if share >= 0.005:
                colour = "white" if share > 0.5 else _INK
                text = f"{share:.2f}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8)
    bar = figure.colorbar(shown, ax=axes, shrink=0.5, pad=0.02)
    bar.set_label("share of outputs", fontsize=type_size)
    figure.savefig(Path(path), dpi=110)


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of ``count`` small panels, three a row at most, the lowest of each column labelled.

    width, height: of one panel, in inches.
    """
    wide = min(3, count)
    tall = math.ceil(count / wide)
    figure = Figure(figsize=(width * wide, height * tall), layout="constrained")
    FigureCanvasAgg(figure)
    every = [figure.add_subplot(tall, wide, i + 1) for i in range(count)]
    for i, axes in enumerate(every):
        axes.tick_params(labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
        if i >= count - wide:
            axes.set_xlabel("round", fontsize=8)
    return figure, every


def loss_curves(history: Mapping[str, Sequence[float]], path: Path | str) -> None:
    """Save one small panel a series: raw values light, their running mean dark.

    A panel is logarithmic when all its values are positive and span more than a factor of 10;
    values that are not finite are left out. Raises ValueError when there is no series.
    """
    if not history:
        raise ValueError("there is no series to draw")
    figure, every = panels(len(history), 3.6, 2.4)
    for axes, (name, series) in zip(every, history.items(), strict=True):
        values = np.asarray(series, dtype=np.float64)
        steps = np.flatnonzero(np.isfinite(values))
        values = values[steps]
        axes.set_title(name, fontsize=9, color=_INK, loc="left")
        if not values.size:
            axes.text(0.5, 0.5, "no finite values", ha="center", transform=axes.transAxes)
            continue
        axes.plot(steps, values, color=_RAW, linewidth=0.8)
        axes.plot(steps, running_mean(values.tolist(), 20), color=_SMOOTH, linewidth=1.4)
        if values.min() > 0 and values.max() > 10 * values.min():
            axes.set_yscale("log")
    figure.savefig(Path(path), dpi=110)
