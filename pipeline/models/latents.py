"""What the families' editors share: 2 x 2 patches as tokens, frozen parts, pictures."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def pack(latents: Tensor) -> Tensor:
    """``[B, C, h, w]`` latents to ``[B, h/2 * w/2, 4C]`` tokens of 2 x 2 patches."""
    b, c, h, w = latents.shape
    patches = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`pack`; ``grid`` is the tokens' (rows, columns)."""
    b, _, c = tokens.shape
    rows, cols = grid
    patches = tokens.view(b, rows, cols, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c // 4, rows * 2, cols * 2)


def to_pictures(decoded: Tensor) -> Tensor:
    """An autoencoder's output in [-1, 1] to pictures in [0, 1], fp32."""
    return (decoded.float() / 2 + 0.5).clamp(0, 1)


def frozen(module: torch.nn.Module, device: str | torch.device) -> Any:
    """The module on a device, in evaluation mode, without gradients."""
    return module.to(device).eval().requires_grad_(False)


def require_parts(folder: Path, pipeline: str, names: Iterable[str]) -> None:
    """Raise ValueError where a diffusers folder lacks a part's ``config.json``."""
    for name in names:
        if not (folder / name / "config.json").exists():
            raise ValueError(
                f"{folder}: no {name}/config.json; the model must be a diffusers folder "
                f"({pipeline} layout)"
            )
