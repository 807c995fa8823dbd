"""Prompts' directions as the text encoder sees them: a Ray task, for the encoder may need a GPU."""

from collections.abc import Sequence

import numpy as np
import ray
import torch
from numpy.typing import NDArray

from pipeline.evaluation.orthogonality import direction
from pipeline.images import open_image
from pipeline.models.families import load_editor


@ray.remote  # type: ignore[untyped-decorator]
def prompt_directions(
    prompts: Sequence[str],
    pictures: Sequence[str],
    model: str,
    device: str,
    dtype: str,
    threads: int,
) -> NDArray[np.float64]:
    """Unit directions ``[n, D]`` of prompts about the same pictures (files; may be none)."""
    torch.set_num_threads(threads)
    editor = load_editor(model, ["text"], device, getattr(torch, dtype))
    images = [open_image(path) for path in pictures]
    empty = editor.encode_prompt("", images).numpy()
    found = [direction(editor.encode_prompt(p, images).numpy(), empty) for p in prompts]
    return np.stack(found)
