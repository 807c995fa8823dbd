"""A student that does not begin at nothing: a warm start, or a finished one to add effects to."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.distill.update import FAKE, STUDENT
from pipeline.models.adapters import Adapters
from pipeline.models.lora_formats import LoraModule, read_lora


def begin_with(adapters: Adapters, lora: Path, fake: Path | None, scale: float) -> None:
    """Put a student's weights, and its fake score's, into the new adapters.

    lora: a LoRA file of the adapters' modules and rank; fake: a checkpoint's tensors (None: the
    fake score starts at the student's own weights, which is nearer to what the student draws than
    the bare base is); scale: the adapters' own alpha / rank.
    """
    weights = start_weights(read_lora(lora).modules, scale)
    adapters.replace(STUDENT, weights)
    adapters.replace(FAKE, weights if fake is None else load_file(fake))


def start_weights(modules: Mapping[str, LoraModule], scale: float) -> dict[str, Tensor]:
    """A LoRA's weights under ``Adapters.state``'s names, for adapters of another alpha / rank."""
    weights: dict[str, Tensor] = {}
    for name, module in modules.items():
        weights[f"{name}.lora_A"] = module.down.to(torch.float32)
        weights[f"{name}.lora_B"] = module.up.to(torch.float32) * (module.scale / scale)
    return weights
