"""A transformer of the true size with random weights, and a collection of random tensors."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import QwenImageTransformer2DModel
from torch import Tensor, nn

from pipeline.distill.rates import RateSettings
from pipeline.distill.update_settings import UpdateSettings
from pipeline.models.editor import Conditions
from pipeline.models.lora_formats import LoraModule, content_hash, linear_shapes, write_lora
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.plan import PlanSettings
from pipeline.tensor_store import TensorStore, write_part
from pipeline.types import EffectEntry, Manifest, Rollout, Sample


@dataclass(frozen=True)
class Size:
    """A bench's model and pictures.

    config: of the transformer; grid: (rows, columns) of a picture's tokens, one source picture;
    words: tokens of a prompt with its picture; rank: of all adapters; steps: of the student;
    target_steps: of a teacher's multi-step output.
    """

    config: dict[str, Any]
    grid: tuple[int, int]
    words: int
    rank: int
    steps: int
    target_steps: int
    dtype: torch.dtype

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]


# transformer/config.json as published for Qwen-Image-Edit-2509; a picture of 1024 x 1024.
FULL = Size(
    config={
        "attention_head_dim": 128,
        "axes_dims_rope": [16, 56, 56],
        "in_channels": 64,
        "joint_attention_dim": 3584,
        "num_attention_heads": 24,
        "num_layers": 60,
        "out_channels": 16,
        "patch_size": 2,
    },
    grid=(64, 64),
    words=256,
    rank=128,
    steps=8,
    target_steps=40,
    dtype=torch.bfloat16,
)
# Large enough for every path, small enough for a minute on two cores.
MINI = replace(
    FULL,
    config=FULL.config
    | {
        "attention_head_dim": 32,
        "axes_dims_rope": [8, 12, 12],
        "in_channels": 80,
        "joint_attention_dim": 32,
        "num_attention_heads": 2,
        "num_layers": 2,
        "out_channels": 20,
    },
    grid=(4, 4),
    words=8,
    rank=4,
    target_steps=4,
    dtype=torch.float32,
)


def random_editor(size: Size, device: torch.device) -> QwenImageEditor:
    """An editor of a transformer alone, made on the device: the host never holds it."""
    with init_empty_weights():
        transformer = QwenImageTransformer2DModel.from_config(size.config)
    generator = torch.Generator(device).manual_seed(0)
    for module in transformer.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            values = torch.empty(parameter.shape, dtype=size.dtype, device=device)
            if parameter.dim() > 1:
                # As wide a sum as any has about the size of its terms.
                values.normal_(0, parameter.shape[1] ** -0.5 / 2, generator=generator)
            else:
                values.fill_(0.0 if name == "bias" else 1.0)
            setattr(module, name, nn.Parameter(values, requires_grad=False))
    transformer.eval()
    return QwenImageEditor.bare(transformer, device)


def random_conditions(size: Size, batch: int, device: torch.device) -> Conditions:
    """Of one source picture of the edit's own size and a prompt without padding."""
    channels, words = size.config["in_channels"], size.config["joint_attention_dim"]
    return Conditions(
        torch.randn(batch, size.words, words, device=device),
        None,
        torch.randn(batch, size.tokens, channels, device=device),
        [(1, *size.grid)] * 2,
    )


def random_collection(
    size: Size, transformer: nn.Module, folder: Path, effects: int
) -> tuple[TensorStore, Manifest]:
    """Effects with their adapters, one sample each, and one general row, on disk."""
    # On the transformer's device: a card draws an adapter's billion values in the time of a blink.
    device = next(transformer.parameters()).device
    generator = torch.Generator(device).manual_seed(1)

    def tensor(rows: int, columns: int) -> Tensor:
        return torch.randn(rows, columns, generator=generator, device=device).cpu()

    channels, words = size.config["in_channels"], size.config["joint_attention_dim"]
    tensors = {"source": tensor(size.tokens, channels), "null": tensor(size.words, words)}
    shapes = ((1, *size.grid), (1, *size.grid))
    entries = []
    for i in range(effects):
        tensors[f"prompt{i}"] = tensor(size.words, words)
        tensors[f"target{i}"] = tensor(size.tokens, channels)
        path = folder / f"effect{i}.safetensors"
        write_lora(path, random_lora(size, transformer, generator), {})
        sample = Sample(("source",), f"prompt{i}", f"prompt{i}", "null", f"target{i}", shapes)
        entries.append(EffectEntry(f"effect{i}", str(path), content_hash(path), 1.0, (sample,)))
    general = Sample(("source",), "prompt0", "prompt0", "null", None, shapes)
    write_part(folder / "store", list(tensors.items()))
    return TensorStore([folder / "store"]), Manifest(tuple(entries), (general,))


def random_lora(
    size: Size, transformer: nn.Module, generator: torch.Generator
) -> dict[str, LoraModule]:
    """A LoRA on all linear layers of the blocks, in the base's precision, as users have them."""

    def tensor(rows: int, columns: int) -> Tensor:
        values = torch.randn(rows, columns, generator=generator, device=generator.device)
        return (values / columns).to("cpu", size.dtype)

    return {
        name: LoraModule(tensor(size.rank, into), tensor(out, size.rank))
        for name, (out, into) in linear_shapes(transformer).items()
        if name.startswith("transformer_blocks.")
    }


def plan_of(size: Size, effects: int, batch: int = 1) -> PlanSettings:
    """The published plan, in the effect stream throughout: there a round costs most."""
    return PlanSettings(
        seed=0,
        batch=batch,
        p_switch=1.0,
        fake_updates=5,
        student_steps=size.steps,
        shift=3.0,
        tau_max=0.75,
        tau_min=0.5,
        ta_fm_batch=0,
        effect_weights=(1.0,) * effects,
        samples=(1,) * effects,
        general=1,
    )


def update_of() -> UpdateSettings:
    """The published rates and weights."""
    rate = RateSettings(1e-4, 0, "constant")
    return UpdateSettings(100, rate, rate, (0.9, 0.999), 10.0, 0.0, 1.0, 1.0, 1.0)


def random_rollout(size: Size, plan: PlanSettings, round_index: int) -> Rollout:
    """A rollout's rows without a teacher pool."""
    rng, shape = np.random.default_rng(round_index), (size.tokens, size.config["in_channels"])

    def rows(*lead: int) -> Any:
        return rng.standard_normal((plan.batch, *lead, *shape), dtype=np.float32)

    same = np.zeros(plan.batch, dtype=np.int64)
    return Rollout(
        round=same + round_index,
        rank=same,
        policy_version=same + round_index,
        x_k=rows(),
        x_g=rows(),
        teacher_x0=rows(),
        fake_x0=rows(plan.fake_updates),
        ts_x0=rows(),
        ts_teacher_x0=rows(),
        teacher_forwards=same.astype(float),
        seconds=same.astype(float),
    )
