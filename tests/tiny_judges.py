"""Folders of CLIP and DINO as transformers saves them: real classes, tiny sizes, random weights."""

from pathlib import Path

import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2Model,
)

SIDE = 32


def write_tiny_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of one layer; returns ``folder``."""
    torch.manual_seed(seed)
    common = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "projection_dim": 8}
    config = CLIPConfig(
        text_config={**common, **heads, "vocab_size": 64, "max_position_embeddings": 8},
        vision_config={**common, **heads, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    CLIPImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder


def write_tiny_dino(folder: Path, seed: int = 0) -> Path:
    """A DINOv2 of one layer; returns ``folder``."""
    torch.manual_seed(seed)
    config = Dinov2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        mlp_ratio=2,
        image_size=SIDE,
        patch_size=8,
    )
    Dinov2Model(config).save_pretrained(folder)
    size = {"shortest_edge": SIDE}
    BitImageProcessor(size=size, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return folder
