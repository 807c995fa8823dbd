"""How large a folder's transformer is, from its configuration alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class BaseSize:
    """A transformer's parameters.

    parameters: all of them; quantisable: in the weights of the blocks' linear layers; rows: of
    these weights; blocks: how many; width: of the tokens within the blocks.
    """

    parameters: int
    quantisable: int
    rows: int
    blocks: int
    width: int


def base_size(folder: str | Path) -> BaseSize:
    """The size of a folder's transformer; takes no memory and reads no weights."""
    import diffusers

    from pipeline.models.families import family_of
    from pipeline.models.loading import empty_transformer
    from pipeline.models.local import local_model

    kind = getattr(diffusers, family_of(folder).transformer)
    return size_of(empty_transformer(kind, local_model(folder), torch.bfloat16))


def size_of(transformer: Any) -> BaseSize:
    """The size of a transformer without adapters, of diffusers' classes; it may have no weights."""
    from pipeline.models.loading import outer_layers

    outer = set(outer_layers(transformer))
    inner = [
        module.weight.shape
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in outer
    ]
    lists = [c for c in transformer.children() if isinstance(c, torch.nn.ModuleList)]
    return BaseSize(
        parameters=sum(p.numel() for p in transformer.parameters()),
        quantisable=sum(shape.numel() for shape in inner),
        rows=sum(shape[0] for shape in inner),
        blocks=sum(len(blocks) for blocks in lists),
        width=transformer.inner_dim,
    )
