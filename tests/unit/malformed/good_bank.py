"""A small good recipe, bank and model folder, for tests to load or to spoil."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from pipeline.models.lora_formats import LoraModule, write_lora

TRANSFORMER = {
    "_class_name": "QwenImageTransformer2DModel",
    "in_channels": 64,
    "out_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 32,
    "num_attention_heads": 4,
    "joint_attention_dim": 64,
    "axes_dims_rope": [8, 12, 12],
}
WIDTH = 128
TO_Q = "transformer_blocks.0.attn.to_q"


@dataclass
class Work:
    """A folder with recipe.yaml, bank/ and model/; the data are written out by ``save``."""

    folder: Path
    recipe: dict[str, Any]
    bank: dict[str, Any]

    @property
    def recipe_file(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def bank_file(self) -> Path:
        return self.folder / "bank" / "bank.yaml"

    def file(self, name: str) -> Path:
        """A file of the bank."""
        return self.folder / "bank" / name

    def save(self) -> None:
        self.recipe_file.write_text(yaml.safe_dump(self.recipe))
        self.bank_file.write_text(yaml.safe_dump(self.bank))


def lora(rank: int = 2, width: int = WIDTH) -> dict[str, LoraModule]:
    """A LoRA on one layer of the small transformer."""
    return {TO_Q: LoraModule(torch.ones(rank, width), torch.ones(width, rank))}


def write_image(path: Path, seed: int = 0, size: tuple[int, int] = (32, 32)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_parts(model: Path) -> None:
    """The files of a whole model that are looked for, of one tensor each; nothing loads them."""
    configs = {
        "transformer/config.json": TRANSFORMER,
        "vae/config.json": {"temperal_downsample": [False, True, True]},
        "text_encoder/config.json": {},
        "scheduler/scheduler_config.json": {},
        "tokenizer/tokenizer_config.json": {},
        "processor/tokenizer_config.json": {},
    }
    for name, config in configs.items():
        path = model / name
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(config))
        if path.name == "config.json":
            weights = "model" if "text" in name else "diffusion_pytorch_model"
            save_file({"a": torch.ones(1)}, path.with_name(f"{weights}.safetensors"))


def good_work(folder: Path) -> Work:
    """Two effects with two pairs and an adapter each, a general row, photographs and a test."""
    bank = folder / "bank"
    bank.mkdir(parents=True)
    pairs = []
    for seed, (effect, number) in enumerate((e, n) for e in ("snow", "negative") for n in (1, 2)):
        row = {"effect": effect}
        for part, name in enumerate(("source", "target")):
            row[name] = f"pairs/{effect}_{number}_{name}.png"
            write_image(bank / row[name], 10 * seed + part)
        pairs.append(row)
    write_rows(bank / "pairs.jsonl", pairs)
    write_image(bank / "general" / "1.png", 100)
    write_rows(bank / "general.jsonl", [{"image": "general/1.png", "prompt": "make it brighter"}])
    write_image(bank / "photographs" / "1.png", 101)
    write_image(bank / "test" / "1.png", 102)
    for effect in ("snow", "negative"):
        write_lora(bank / "adapters" / f"{effect}.safetensors", lora(), {})
    write_parts(folder / "model")
    index = {"_class_name": "QwenImageEditPlusPipeline"}
    (folder / "model" / "model_index.json").write_text(json.dumps(index))
    work = Work(
        folder,
        {
            "name": "small",
            "bank": str(bank),
            "output": str(folder / "runs" / "small"),
            "model": {"path": str(folder / "model")},
            "evaluate": {"truth": "miniature"},
        },
        {
            "effects": [
                {
                    "name": name,
                    "prompt": f"add {name}",
                    "adapter": f"adapters/{name}.safetensors",
                    "description": f"a photograph with {name}",
                    "trigger": f"<{name}_ab12>",
                }
                for name in ("snow", "negative")
            ],
            "pairs": "pairs.jsonl",
            "general": "general.jsonl",
            "photographs": "photographs",
            "test": "test",
        },
    )
    work.save()
    return work
