"""A random editor in the miniature's folder layout, and a small bank's worth of inputs for it.

For tests of what the machinery does, not of how good a picture is: nothing here is trained.
"""

import json
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from pipeline.evaluation.effectbench import TestSource
from pipeline.miniature import photographs
from pipeline.miniature.autoencoder import CHANNELS, new_autoencoder
from pipeline.miniature.build import SIDE, new_transformer, save_base
from pipeline.miniature.pictures import to_image
from pipeline.miniature.textencoder import (
    CONDITION_SIDE,
    HIDDEN,
    new_processor,
    new_text_encoder,
    train_tokenizer,
)
from pipeline.models.geometry import SIZES_FILE
from pipeline.models.lora_formats import LoraModule, write_lora
from pipeline.models.qwen_image_edit import TEMPLATE, QwenImageEditor
from pipeline.tensor_store import write_part

GRID = SIDE // 16
WIDTH = 128


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """A whole random model folder; what starts at zero in the miniature is random here."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SIZES_FILE).write_text(json.dumps({"side": SIDE, "condition_side": CONDITION_SIDE}))
    FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    editor = QwenImageEditor(folder, torch.device("cpu"))
    tokenizer = train_tokenizer([TEMPLATE, "make it snow", "turn it blue"], vocabulary=400)
    editor.processor = new_processor(tokenizer)
    editor.text_encoder = new_text_encoder(tokenizer, seed)
    torch.manual_seed(seed)
    editor.vae = new_autoencoder()
    editor.transformer = new_transformer()
    torch.nn.init.normal_(editor.transformer.proj_out.weight, std=0.05)
    for block in editor.transformer.transformer_blocks:
        # Zero gates would hide whatever an adapter does.
        for modulation in (block.img_mod[1], block.txt_mod[1]):
            torch.nn.init.normal_(modulation.bias, std=0.5)
    save_base(editor, folder)
    return folder


def write_tiny_lora(path: Path, seed: int, rank: int = 2, scale: float = 0.5) -> Path:
    """A random LoRA on the queries of every block."""
    rng = torch.Generator().manual_seed(seed)
    modules = {
        f"transformer_blocks.{i}.attn.to_q": LoraModule(
            torch.randn(rank, WIDTH, generator=rng) * scale,
            torch.randn(WIDTH, rank, generator=rng) * scale,
        )
        for i in range(4)
    }
    write_lora(path, modules, {})
    return path


def write_test_sources(
    folder: Path, store: Path, effects: list[str], count: int = 2, seed: int = 0
) -> list[TestSource]:
    """Held-out crops as PNG files and, without any encoder, random encodings of them."""
    rng = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tensors, sources = [], []
    for i, (name, picture) in enumerate(photographs.crops("test", count, SIDE, seed)):
        stem = f"{name}_{i:03d}"
        to_image(picture).save(folder / f"{stem}.png")
        keys = {w: f"{w}-{stem}" for w in ("source", "null")}
        tensors.append((keys["source"], torch.randn(GRID**2, 4 * CHANNELS, generator=rng)))
        tensors.append((keys["null"], torch.randn(9, HIDDEN, generator=rng)))
        prompts: dict[str, dict[str, str]] = {"teacher": {}, "student": {}}
        for role, by_effect in prompts.items():
            for effect in effects:
                by_effect[effect] = f"{role}-{effect}-{stem}"
                length = 10 + len(effect)
                states = torch.randn(length, HIDDEN, generator=rng)
                tensors.append((by_effect[effect], states))
        sources.append(
            TestSource(
                path=str(folder / f"{stem}.png"),
                photograph=stem,
                source=keys["source"],
                null_prompt=keys["null"],
                teacher_prompts=prompts["teacher"],
                student_prompts=prompts["student"],
                shapes=((1, GRID, GRID), (1, GRID, GRID)),
            )
        )
    write_part(store, tensors)
    return sources
