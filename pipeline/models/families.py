"""The model families, and which of them a folder holds: its own ``model_index.json`` says it.

What can be known without loading a model is here, so that a bank is checked, keyed and planned
without diffusers; :func:`load_editor` is the one place that chooses a class.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline.models.editor import Editor, Part
from pipeline.models.geometry import Geometry, Size, fit_area, fit_kontext, image_sizes
from pipeline.models.local import local_model
from pipeline.models.quantization import Quantize

# The model card's: a guidance-distilled network is told how strongly to follow the prompt.
KONTEXT_GUIDANCE = 2.5


@dataclass(frozen=True)
class Family:
    """What a stage must know of a family.

    pipeline, transformer: diffusers' classes; text: the subfolders that decide what a prompt's
    encoding is; prompts_see_images: whether its source pictures do, too; max_sources: source
    pictures the stock pipeline takes; halvings: how often the autoencoder of a config halves a
    picture's sides; guidance: what a guidance-distilled model is told, which its exports must be
    run at (None: the model takes none).
    """

    pipeline: str
    transformer: str
    text: tuple[str, ...]
    prompts_see_images: bool
    max_sources: int
    fit_source: Callable[[int, int, int], Size]
    halvings: Callable[[dict[str, Any]], int]
    guidance: float | None


QWEN_IMAGE_EDIT = Family(
    pipeline="QwenImageEditPlusPipeline",
    transformer="QwenImageTransformer2DModel",
    text=("text_encoder", "tokenizer", "processor"),
    prompts_see_images=True,
    max_sources=3,
    fit_source=fit_area,
    halvings=lambda vae: len(vae["temperal_downsample"]),
    guidance=None,
)
FLUX_KONTEXT = Family(
    pipeline="FluxKontextPipeline",
    transformer="FluxTransformer2DModel",
    text=("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"),
    prompts_see_images=False,
    max_sources=1,
    fit_source=fit_kontext,
    halvings=lambda vae: len(vae["block_out_channels"]) - 1,
    guidance=KONTEXT_GUIDANCE,
)
FAMILIES = {family.pipeline: family for family in (QWEN_IMAGE_EDIT, FLUX_KONTEXT)}


def family_of(folder: str | Path) -> Family:
    """The family of a diffusers folder.

    Raises:
        ValueError: no readable ``model_index.json``, or not of one of ``FAMILIES``.
    """
    index = local_model(folder) / "model_index.json"
    if not index.is_file():
        raise ValueError(f"{index}: no such file; give a diffusers folder")
    found = json.loads(index.read_text(encoding="utf-8"))
    name = found.get("_class_name") if isinstance(found, dict) else None
    if name not in FAMILIES:
        raise ValueError(f"{index}: {name!r} is not one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def geometry_of(folder: str | Path, family: Family | None = None) -> Geometry:
    """How the model of a folder sizes pictures; reads configurations only."""
    folder = local_model(folder)
    family = family or family_of(folder)
    vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    # The transformer takes patches of 2 x 2 latents.
    return Geometry(image_sizes(folder), family.fit_source, 2 * 2 ** family.halvings(vae))


def load_editor(
    folder: str | Path,
    parts: Sequence[Part],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    quantize: Quantize | None = None,
    weights: bool = True,
) -> Editor:
    """Load the named parts of a model of any family onto ``device``, frozen.

    ``folder`` may be an address (:func:`pipeline.models.local.local_model`). ``quantize``: how the
    transformer's blocks are stored; without ``weights`` it is on the meta device.

    Raises:
        ValueError: the folder lacks a part, or is of no known family.
    """
    folder = local_model(folder)
    # Here, because importing diffusers takes seconds that a look at a folder need not wait.
    if family_of(folder) is FLUX_KONTEXT:
        from pipeline.models.flux_kontext import FluxKontextEditor

        return FluxKontextEditor.load(folder, parts, device, dtype, quantize, weights)
    from pipeline.models.qwen_image_edit import QwenImageEditor

    return QwenImageEditor.load(folder, parts, device, dtype, quantize, weights)
