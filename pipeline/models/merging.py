"""LoRAs put together without training: stacked (exactly), or merged as peft merges them."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from peft.utils.merge_utils import dare_linear, task_arithmetic, ties
from torch import Tensor

from pipeline.models.lora_formats import LoraModule

Merge = Literal["linear", "ties", "dare"]
Modules = dict[str, LoraModule]


def stack(loras: Sequence[Modules]) -> Modules:
    """One LoRA that adds what all of them add: ``sum_i scale_i * up_i @ down_i``, exactly.

    The ranks add up. This is what a pipeline with several active adapters computes.
    """
    names = dict.fromkeys(name for lora in loras for name in lora)
    stacked: Modules = {}
    for name in names:
        parts = [lora[name] for lora in loras if name in lora]
        down = torch.cat([p.down.float() for p in parts])
        up = torch.cat([p.up.float() * p.scale for p in parts], dim=1)
        stacked[name] = LoraModule(down, up)
    return stacked


def merge(loras: Sequence[Modules], method: Merge, density: float, seed: int) -> Modules:
    """The LoRAs merged into one of the same rank, by peft's merging functions.

    As peft's ``add_weighted_adapter`` does it: A and B matrices are merged each for themselves,
    with the square root of weight x scale on either side. ``linear`` and ``dare`` take the mean
    (weights 1/n), ``ties`` elects signs and so takes weights 1; ``density`` is the share of the
    entries that TIES and DARE keep, ``seed`` DARE's choice of them.

    Raises:
        ValueError: the ranks of a module differ, or the LoRAs are not on the same modules.
    """
    first = loras[0]
    if any(lora.keys() != first.keys() for lora in loras):
        raise ValueError("the LoRAs to merge are on different modules")
    weight = 1.0 if method == "ties" else 1.0 / len(loras)
    merged: Modules = {}
    # DARE drops entries by torch's global generator.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for name in first:
            parts = [lora[name] for lora in loras]
            if len({p.rank for p in parts}) > 1:
                raise ValueError(f"{name}: the LoRAs to merge have different ranks")
            weights = torch.tensor([math.sqrt(weight * p.scale) for p in parts])
            down = _merged([p.down.float() for p in parts], weights, method, density)
            up = _merged([p.up.float() for p in parts], weights, method, density)
            merged[name] = LoraModule(down, up)
    return merged


def _merged(tensors: list[Tensor], weights: Tensor, method: Merge, density: float) -> Tensor:
    result: Tensor
    match method:
        case "linear":
            result = task_arithmetic(tensors, weights)
        case "ties":
            result = ties(tensors, weights, density)
        case "dare":
            result = dare_linear(tensors, weights, density)
    return result
