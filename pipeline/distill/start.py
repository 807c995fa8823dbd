"""A student that does not begin at nothing: the weights of a finished one, to add effects to."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.distill.update import FAKE, STUDENT
from pipeline.models.adapters import Adapters
from pipeline.models.lora_formats import LoraModule, read_lora


def begin_with(adapters: Adapters, lora: Path, fake: Path | None, scale: float) -> None:
    """Put a finished student, and its fake score if there is one, into the new adapters.

    lora: a LoRA file of the adapters' modules and rank; fake: a checkpoint's tensors; scale: the
    adapters' own alpha / rank.
    """
    adapters.replace(STUDENT, start_weights(read_lora(lora).modules, scale))
    if fake is not None:
        adapters.replace(FAKE, load_file(fake))


def start_weights(modules: Mapping[str, LoraModule], scale: float) -> dict[str, Tensor]:
    """A LoRA's weights under ``Adapters.state``'s names, for adapters of another alpha / rank."""
    weights: dict[str, Tensor] = {}
    for name, module in modules.items():
        weights[f"{name}.lora_A"] = module.down.to(torch.float32)
        weights[f"{name}.lora_B"] = module.up.to(torch.float32) * (module.scale / scale)
    return weights
