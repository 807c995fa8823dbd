"""One reference adapter in every layout that is met in the wild, made from its weights alone.

Values are multiples of 1/64 below 1, which float32, float16 and bfloat16 all hold exactly.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.models.lora_formats import LoraModule, Shapes

Tensors = dict[str, Tensor]
BLOCK = "transformer_blocks.0"
QKV = ("to_q", "to_k", "to_v")
ADDED = ("add_q_proj", "add_k_proj", "add_v_proj")
# Rank and alpha by the module's ending; None: the file is silent, alpha is the rank.
SIZES: dict[str, tuple[int, float | None]] = {
    **dict.fromkeys((f"attn.{n}" for n in QKV), (4, 6.0)),
    **dict.fromkeys((f"attn.{n}" for n in ADDED), (3, None)),
    "attn.to_out.0": (2, 1.0),
    "attn.to_add_out": (2, 5.0),
    "img_mlp.net.0.proj": (5, 2.5),
    "img_mlp.net.2": (4, 4.0),
    "txt_mlp.net.0.proj": (1, 3.0),
    "txt_mlp.net.2": (3, 0.1),
    "img_mod.1": (4, 2.0),
    "txt_mod.1": (4, 6.0),
    "img_in": (2, 3.0),
    "norm_out.linear": (2, 1.0),
    "time_text_embed.timestep_embedder.linear_1": (1, 0.5),
    "proj_out": (2, 1.0),
}


def reference(shapes: Shapes) -> dict[str, LoraModule]:
    """A LoRA on all of a block and around it; fused layers share their ``down``."""
    rng = torch.Generator().manual_seed(7)

    def draw(*shape: int) -> Tensor:
        return torch.randint(-24, 25, shape, generator=rng) / 64

    modules: dict[str, LoraModule] = {}
    shared: dict[str, Tensor] = {}
    for ending, (rank, alpha) in SIZES.items():
        name = ending if ending in shapes else f"{BLOCK}.{ending}"
        out, into = shapes[name]
        last = ending.rpartition(".")[2]
        group = "qkv" if last in QKV else "added" if last in ADDED else name
        down = shared.setdefault(group, draw(rank, into))
        modules[name] = LoraModule(down, draw(out, rank), alpha)
    return modules


def alpha_of(m: LoraModule) -> float:
    return float(m.rank if m.alpha is None else m.alpha)


def styled(
    modules: dict[str, LoraModule],
    prefix: str,
    down: str,
    up: str,
    alphas: str = "",
    flat: bool = False,
) -> Tensors:
    """Keys of one style; ``alphas``: where the alpha tensor's key ends, if there are any."""
    tensors: Tensors = {}
    for name, m in modules.items():
        stem = prefix + (name.replace(".", "_") if flat else name)
        tensors[f"{stem}.{down}"] = m.down.clone()
        tensors[f"{stem}.{up}"] = m.up.clone()
        if alphas:
            tensors[f"{stem}.{alphas}"] = torch.tensor(alpha_of(m), dtype=torch.float64)
    return tensors


def scaled(modules: dict[str, LoraModule], up: float = 1.0) -> dict[str, LoraModule]:
    """The same LoRA with its scale in the weights: its power ``up`` in ``up``, the rest in down."""
    return {
        n: LoraModule(m.down * m.scale ** (1 - up), m.up * m.scale**up) for n, m in modules.items()
    }


def fused(modules: dict[str, LoraModule], first: str, second: str) -> dict[str, LoraModule]:
    """Query, key and value as one module each for image and text."""
    rest = dict(modules)
    for name, parts in ((first, QKV), (second, ADDED)):
        own = [rest.pop(f"{BLOCK}.attn.{part}") for part in parts]
        up = torch.cat([m.up for m in own])
        rest[f"{BLOCK}.attn.{name}"] = LoraModule(own[0].down, up, own[0].alpha)
    return rest


def settings(modules: dict[str, LoraModule], prefix: str = "", tie: str = "^") -> dict[str, object]:
    """peft's own fields, every module in the patterns."""
    return {
        f"{prefix}r": 4,
        f"{prefix}lora_alpha": 32,
        f"{prefix}rank_pattern": {f"{tie}{n}": m.rank for n, m in modules.items()},
        f"{prefix}alpha_pattern": {f"{tie}{n}": alpha_of(m) for n, m in modules.items()},
        f"{prefix}target_modules": list(modules),
    }


@dataclass(frozen=True)
class Sample:
    """A layout; ``stock``: stock diffusers loads it as well, to the same scales."""

    name: str
    make: Callable[[dict[str, LoraModule], Path], Path]
    stock: bool = False


AB = ("lora_A.weight", "lora_B.weight")
NAMED = ("lora_A.default.weight", "lora_B.default.weight")
DU = ("lora_down.weight", "lora_up.weight")


def _file(
    make: Callable[[dict[str, LoraModule]], Tensors],
    metadata: Callable[[dict[str, LoraModule]], dict[str, str]] = lambda modules: {},
    dtype: torch.dtype = torch.float32,
) -> Callable[[dict[str, LoraModule], Path], Path]:
    def write(modules: dict[str, LoraModule], folder: Path) -> Path:
        tensors = {
            key: t if key.endswith("alpha") else t.to(dtype) for key, t in make(modules).items()
        }
        save_file(tensors, folder / "lora.safetensors", metadata(modules))
        return folder / "lora.safetensors"

    return write


def _diffusers_metadata(modules: dict[str, LoraModule]) -> dict[str, str]:
    return {"format": "pt", "lora_adapter_metadata": json.dumps(settings(modules, "transformer."))}


def _musubi(modules: dict[str, LoraModule], **given: object) -> Tensors:
    return styled(modules, "lora_unet_", *DU, "alpha", flat=True)


def _whole_alphas(modules: dict[str, LoraModule]) -> Tensors:
    """As a converter leaves them that takes alpha from the rank."""
    tensors = styled(scaled(modules), "lora_unet_", *DU, "alpha", flat=True)
    return {k: t.long() if k.endswith("alpha") else t for k, t in tensors.items()}


def _two_styles(modules: dict[str, LoraModule]) -> Tensors:
    items = list(modules.items())
    flat = styled(dict(items[::2]), "lora_unet_", *DU, "alpha", flat=True)
    return flat | styled(dict(items[1::2]), "diffusion_model.", *DU, "alpha")


def _peft_folder(modules: dict[str, LoraModule], folder: Path) -> Path:
    save_file(styled(modules, "base_model.model.", *AB), folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", **settings(modules, tie="")}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


CORPUS = (
    Sample("diffusers", _file(lambda m: styled(m, "transformer.", *AB), _diffusers_metadata), True),
    Sample("bare_with_alphas", _file(lambda m: styled(m, "", *AB, "alpha")), True),
    Sample("diffsynth", _file(lambda m: styled(scaled(m), "", *NAMED)), True),
    Sample(
        "adapter_name",
        _file(
            lambda m: styled(m, "transformer.", "lora_A.snow.weight", "lora_B.snow.weight"),
            _diffusers_metadata,
        ),
    ),
    Sample("ai_toolkit", _file(lambda m: styled(scaled(m), "diffusion_model.", *AB)), True),
    Sample("simpletuner", _file(lambda m: styled(m, "diffusion_model.", *AB, "alpha")), True),
    Sample("comfyui", _file(lambda m: styled(m, "diffusion_model.", *DU, "alpha")), True),
    Sample("peft_folder", _peft_folder),
    Sample("peft_named", _file(lambda m: styled(m, "base_model.model.", *NAMED, "alpha"))),
    Sample("musubi", _file(_musubi), True),
    Sample("musubi_converted", _file(lambda m: styled(scaled(m, 0.5), "diffusion_model.", *AB))),
    Sample("kohya_whole_alphas", _file(_whole_alphas), True),
    Sample("musubi_float16", _file(_musubi, dtype=torch.float16)),
    Sample("musubi_bfloat16", _file(_musubi, dtype=torch.bfloat16)),
    Sample("onetrainer", _file(lambda m: styled(m, "lora_transformer_", *DU, "alpha", flat=True))),
    Sample("lycoris_plain", _file(lambda m: styled(m, "lycoris_", *DU, "alpha", flat=True))),
    Sample(
        "old_diffusers",
        _file(lambda m: styled(m, "transformer.", "lora.down.weight", "lora.up.weight", "alpha")),
    ),
    Sample(
        "fused_qkv",
        _file(lambda m: styled(fused(m, "to_qkv", "to_added_qkv"), "transformer.", *AB, "alpha")),
    ),
    Sample("fused_qkv_flat", _file(lambda m: _musubi(fused(m, "qkv", "add_qkv_proj")))),
    Sample("two_styles", _file(_two_styles)),
)
