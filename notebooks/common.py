"""What the notebooks share: where they run, and pictures in rows."""

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image as Shown
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from pipeline.config import Recipe, vary
from pipeline.evaluation.report import markdown
from pipeline.places import Places
from pipeline.progress import read_progress

ROOT = Path(__file__).resolve().parents[1]
COLOURS = {"base": "#9a9a9a", "teacher": "#1f4e8c", "student": "#d1622b"}
INK, GRID = "#222222", "#e8e8e8"

# At once, for some libraries speak when they are imported.
warnings.simplefilter("ignore")
logging.disable(logging.WARNING)


def begin() -> Path:
    """Go to the repository's root, as the commands do; returns the demo's run.

    That is ``runs/demo``, or the folder that the environment's ``COLLECTIONLORA_DEMO`` names.

    Raises:
        FileNotFoundError: no finished run is there.
    """
    os.chdir(ROOT)
    disable_progress_bar()
    torch.set_num_threads(os.cpu_count() or 1)
    plt.rcParams |= {
        "figure.dpi": 88,
        "font.size": 9,
        "axes.titlesize": 9,
        "axes.titlecolor": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
    }
    demo = Path(os.environ.get("COLLECTIONLORA_DEMO", "runs/demo"))
    if not (demo / "report.json").is_file():
        raise FileNotFoundError(f"no finished run in {demo}: `make demo` makes it")
    return demo


def recipe_of(demo: Path) -> Recipe:
    """The recipe of a run, as it is in its folder, wherever that folder is now."""
    places = Places(demo)
    progress = read_progress(places)
    assert progress is not None, "a run with a report has said what it is"
    recipe = Recipe.model_validate(progress.recipe)
    own = demo / "bank"
    bank = str(own) if own.is_dir() else recipe.bank
    return vary(recipe, {"bank": bank, "output": str(demo)})


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the progress of stages and what Ray says, which is for a terminal."""
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        # Ray's own code writes past Python.
        kept = os.dup(2)
        os.dup2(nothing.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def pixels(picture: Any) -> np.ndarray:
    """A PIL image or a tensor ``[3, H, W]`` in [0, 1] as ``[H, W, 3]`` in [0, 1]."""
    if isinstance(picture, Tensor):
        return picture.detach().permute(1, 2, 0).clamp(0, 1).numpy()
    if isinstance(picture, Image.Image):
        return np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return np.asarray(picture)


def grid(
    rows: Sequence[Sequence[Any]],
    titles: Sequence[str] = (),
    labels: Sequence[str] = (),
    size: float = 1.3,
    title: str = "",
) -> None:
    """Show pictures in rows (None: an empty place), with titles above and labels beside them."""
    wide = max(map(len, rows))
    # Titles and labels need room of their own, else they would take it from the pictures.
    above = max((t.count("\n") + 1 for t in titles), default=0)
    beside = max((len(line) for label in labels for line in label.split("\n")), default=0)
    width = size * wide + 0.068 * beside + 0.1
    height = size * len(rows) + 0.16 * above + (0.28 if title else 0)
    figure, places = plt.subplots(
        len(rows), wide, squeeze=False, figsize=(width, height), layout="constrained"
    )
    figure.get_layout_engine().set(w_pad=0.03, h_pad=0.03, hspace=0, wspace=0)
    for r, row in enumerate(rows):
        for c, axes in enumerate(places[r]):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
            if c < len(row) and row[c] is not None:
                axes.imshow(pixels(row[c]), interpolation="bicubic", vmin=0, vmax=1)
            else:
                axes.set_box_aspect(1)
            if r == 0 and c < len(titles):
                axes.set_title(titles[c], fontsize=8.5)
            if c == 0 and r < len(labels):
                axes.set_ylabel(
                    labels[r], fontsize=8.5, rotation=0, ha="right", va="center", labelpad=6
                )
    if title:
        figure.suptitle(title, fontsize=10, color=INK)
    show(figure, "jpeg", pil_kwargs={"quality": 80})


def show(figure: Figure, kind: str = "png", **how: Any) -> None:
    """Show a figure that may be pyplot's or not; it is over then."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **how)
    plt.close(figure)
    display(Shown(buffer.getvalue(), format=kind))


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Show a table."""
    display(Markdown(markdown(header, [[str(cell) for cell in row] for row in rows])))


def picture(path: Path, photographs: bool = True) -> None:
    """Show a picture that a run left, as JPEG where it is one of photographs."""
    if not photographs:
        display(Shown(path.read_bytes()))
        return
    buffer = io.BytesIO()
    Image.open(path).convert("RGB").save(buffer, "JPEG", quality=82)
    display(Shown(buffer.getvalue(), format="jpeg"))
