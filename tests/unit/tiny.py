"""A tiny editor and a small collection on disk: the real classes, no model folder."""

from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel
from torch import Tensor

from pipeline.models.lora_formats import LoraModule, content_hash, write_lora
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.tensor_store import write_part
from pipeline.types import Bucket, EffectEntry, Manifest, Sample

CHANNELS, WIDTH, PROMPT = 80, 64, 16
ROWS, COLUMNS = 1, 2
SHAPES: Bucket = ((1, ROWS, COLUMNS), (1, ROWS, COLUMNS))
MODULES = (
    "attn.to_q",
    "attn.to_k",
    "attn.to_out.0",
    "attn.to_add_out",
    "img_mlp.net.2",
    "img_mod.1",
)


def seeded(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def tiny_editor(seed: int = 0, blocks: int = 1) -> QwenImageEditor:
    """A frozen editor with a random transformer of one block, and no other part."""
    torch.manual_seed(seed)
    editor = QwenImageEditor.__new__(QwenImageEditor)
    editor.device = torch.device("cpu")
    editor.transformer = QwenImageTransformer2DModel(
        in_channels=CHANNELS,
        out_channels=20,
        num_layers=blocks,
        attention_head_dim=32,
        num_attention_heads=2,
        joint_attention_dim=PROMPT,
        axes_dims_rope=(8, 12, 12),
    )
    editor.transformer.eval().requires_grad_(False)
    return editor


def tiny_lora(
    editor: QwenImageEditor, ranks: dict[str, int], alphas: dict[str, float | None], seed: int
) -> dict[str, LoraModule]:
    """A random LoRA, large enough to be seen; keys are module path endings."""
    modules: dict[str, LoraModule] = {}
    for name, layer in editor.transformer.named_modules():
        for ending, rank in ranks.items():
            linear = getattr(layer, "base_layer", layer)
            if name.endswith(ending) and isinstance(linear, torch.nn.Linear):
                key = seed * 1000 + len(modules)
                modules[name] = LoraModule(
                    seeded((rank, linear.in_features), 2 * key) / 4,
                    seeded((linear.out_features, rank), 2 * key + 1) / 4,
                    alphas.get(ending),
                )
    return modules


def tiny_collection(
    folder: Path, editor: QwenImageEditor, buckets: Sequence[Bucket] = (SHAPES,)
) -> tuple[Path, Manifest]:
    """Three effects with their adapters and stored tensors, and general rows.

    The samples of each take the buckets in turn.
    """
    store = folder / "store"
    shapes = {"to_q": (2, None), "img_mlp.net.2": (3, 1.5), "txt_mod.1": (1, 4.0)}
    tensors: dict[str, Tensor] = {"null": seeded((2, PROMPT), 1)}

    def sample(name: str, student: str, teacher: str, taught: bool, i: int, seed: int) -> Sample:
        """Sample i of an effect or of the general rows, with its own sources and target."""
        (_, rows, columns), *shapes = buckets[i % len(buckets)]
        sources = tuple(f"{name}.source{n}" for n in range(len(shapes)))
        for n, (key, (_, r, c)) in enumerate(zip(sources, shapes, strict=True)):
            tensors[key] = seeded((r * c, CHANNELS), seed + 1000 * n)
        target = f"{name}.target" if taught else None
        if target is not None:
            tensors[target] = seeded((rows * columns, CHANNELS), seed + 100)
        return Sample(sources, student, teacher, "null", target, buckets[i % len(buckets)])

    effects = []
    for e in range(3):
        chosen = dict(list(shapes.items())[: e + 1])
        lora = tiny_lora(
            editor,
            {k: r for k, (r, _) in chosen.items()},
            {k: a for k, (_, a) in chosen.items()},
            e,
        )
        path = folder / "adapters" / f"effect{e}.safetensors"
        write_lora(path, lora, {})
        samples = []
        # Prompts of unequal lengths: padding is part of what is tested.
        tensors[f"student{e}"] = seeded((3 + e, PROMPT), 10 + e)
        tensors[f"teacher{e}"] = seeded((5 - e, PROMPT), 20 + e)
        for i in range(4):
            prompts = f"student{e}", f"teacher{e}"
            samples.append(sample(f"effect{e}.{i}", *prompts, True, i, 100 + 10 * e + i))
        effects.append(
            EffectEntry(f"effect{e}", str(path), content_hash(path), 1.0 + e, tuple(samples))
        )
    general = []
    for i in range(3):
        words = f"words{i}"
        tensors[words] = seeded((4 + i, PROMPT), 400 + i)
        general.append(sample(f"general{i}", words, words, False, i, 300 + i))
    items = list(tensors.items())
    write_part(store, items[: len(items) // 2])
    write_part(store, items[len(items) // 2 :])
    return store, Manifest(tuple(effects), tuple(general))
