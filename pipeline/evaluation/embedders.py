"""CLIP, DINO and DreamSim from local transformers folders: how like its source an output is.

CLIP and DINO are cosine similarities of image embeddings (higher: more alike), DreamSim is a
distance (lower: more alike). Nothing is downloaded, and only safetensors are read.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from pipeline.problems import InputError, Problem

Kind = Literal["clip", "dino", "dreamsim"]
# [B] scores of outputs against their sources.
Likeness = Callable[[Sequence[Image.Image], Sequence[Image.Image]], Tensor]
KINDS: tuple[Kind, ...] = ("clip", "dino", "dreamsim")


def load_likeness(kind: Kind, folder: Path, device: str) -> Likeness:
    """The judge of a kind from its folder.

    dreamsim: a folder with one transformers folder a branch, the tuned weights merged into it,
    read in the order of their names: the class token of a ViT, the projected embedding of a CLIP,
    as the published ensemble has them. Its preprocessor is to squeeze to a square, not to crop.

    Raises:
        InputError: not a folder that transformers can read, or not a model of that kind.
    """
    if kind == "dreamsim":
        branches = sorted(p.parent for p in folder.glob("*/config.json"))
        if not branches:
            remedy = "give a folder with a transformers folder for each branch"
            raise _refused(folder, "no */config.json in it", remedy)
        embedders = [_embedder(branch, device) for branch in branches]
        return lambda sources, outputs: _dreamsim(embedders, sources, outputs)
    embed = _embedder(folder, device, projected=kind == "clip")
    return lambda sources, outputs: torch.cosine_similarity(embed(sources), embed(outputs))


def centred(embedding: Tensor) -> Tensor:
    """An embedding ``[B, D]`` less its own mean, of length 1: as DreamSim compares them."""
    less_mean = embedding - embedding.mean(dim=-1, keepdim=True)
    return torch.nn.functional.normalize(less_mean, dim=-1)


def _dreamsim(
    embedders: Sequence[Callable[[Sequence[Image.Image]], Tensor]],
    sources: Sequence[Image.Image],
    outputs: Sequence[Image.Image],
) -> Tensor:
    before, after = (
        centred(torch.cat([embed(images) for embed in embedders], dim=-1))
        for images in (sources, outputs)
    )
    return 1 - torch.cosine_similarity(before, after)


def _embedder(
    folder: Path, device: str, projected: bool | None = None
) -> Callable[[Sequence[Image.Image]], Tensor]:
    """Images to ``[B, D]``: CLIP's projected embedding, or the class token of the last layer.

    projected: which of the two; None is the first where the model has it.
    """
    from transformers import AutoImageProcessor, AutoModel

    # transformers takes a name that is no folder for one on its hub.
    if not (folder / "config.json").is_file():
        raise _refused(folder, "no config.json in it", "give a transformers folder with weights")
    try:
        processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, ImportError, KeyError) as error:
        what = f"not read by transformers ({' '.join(str(error).split())[:160]})"
        raise _refused(folder, what, "give a transformers folder with safetensors") from None
    model = model.to(device).eval().requires_grad_(False)
    has_projection = hasattr(model, "get_image_features")
    projected = has_projection if projected is None else projected
    if projected and not has_projection:
        raise _refused(folder, f"{type(model).__name__} is no CLIP", "give a CLIP model's folder")

    @torch.no_grad()
    def embed(images: Sequence[Image.Image]) -> Tensor:
        pixels = processor(images=list(images), return_tensors="pt")["pixel_values"].to(device)
        if projected:
            found = model.get_image_features(pixel_values=pixels)
            found = getattr(found, "pooler_output", found)
        else:
            vision = getattr(model, "vision_model", model)
            found = vision(pixel_values=pixels).last_hidden_state[:, 0]
        embedding: Tensor = found.float().cpu()
        return embedding

    return embed


def _refused(folder: Path, what: str, remedy: str) -> InputError:
    return InputError([Problem("evaluate.judges", "", str(folder), what, remedy)])
