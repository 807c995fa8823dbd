"""Writing a LoRA in the layouts that its users load.

All three say every module's rank and alpha exactly, so no scale is ever folded into weights:

- ``diffusers``: ``transformer.*.lora_A.weight``, alphas in the file's ``lora_adapter_metadata``,
  from which stock diffusers makes peft's config. Not in ``.alpha`` tensors: where a file has any,
  stock diffusers takes the keys for another style, puts a second ``transformer.`` before them and
  loads nothing. ComfyUI reads these keys but not the metadata: give it its own layout.
- ``comfyui``: ``*.lora_down.weight`` and an ``.alpha`` for every module, after the prefix under
  which ComfyUI looks for diffusers' module paths. For Qwen-Image that is ``diffusion_model.``,
  which stock diffusers and musubi-tuner read too. For Flux ``diffusion_model.`` means the original
  names (``double_blocks``), and diffusers' own are known as ``transformer.`` alone.
- ``peft``: a folder of ``adapter_model.safetensors`` and ``adapter_config.json``.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from pipeline.models.lora.alphas import ADAPTER_FILE, CONFIG_FILE, METADATA_KEY
from pipeline.models.lora.types import LoraModule
from pipeline.models.safetensors_files import write_tensors
from pipeline.storage import atomic_folder, write_atomic

Layout = Literal["diffusers", "comfyui", "peft"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)


def write_lora(
    path: str | Path,
    modules: Mapping[str, LoraModule],
    metadata: Mapping[str, str],
    layout: Layout = "diffusers",
    flux: bool = False,
) -> None:
    """Write a LoRA file (peft: a folder), whole or not at all; the same LoRA, the same bytes.

    Tensors keep their bits and their precision. flux: the model is Flux's, as layers of its single
    blocks say anyway; only ``comfyui`` asks.

    Raises:
        ValueError: no modules, or a module whose two matrices differ in rank or precision is not
            a float type.
    """
    path = Path(path)
    _check(path, modules)
    extra = dict(metadata)
    match layout:
        case "diffusers":
            tensors = _matrices(modules, "transformer.{}.lora_{}.weight", ("A", "B"))
            settings = {f"transformer.{k}": v for k, v in peft_settings(modules).items()}
            extra |= {"format": "pt", METADATA_KEY: json.dumps(settings, sort_keys=True)}
        case "comfyui":
            prefix = "transformer." if flux or has_single_blocks(modules) else "diffusion_model."
            tensors = _matrices(modules, prefix + "{}.lora_{}.weight", ("down", "up"))
            tensors |= {f"{prefix}{n}.alpha": _alpha_tensor(m) for n, m in modules.items()}
        case "peft":
            tensors = _matrices(modules, "base_model.model.{}.lora_{}.weight", ("A", "B"))
            config = {"peft_type": "LORA", "bias": "none", "inference_mode": True}
            text = json.dumps(config | peft_settings(modules), indent=2, sort_keys=True)
            with atomic_folder(path) as folder:
                write_tensors(folder / ADAPTER_FILE, tensors, extra | {"format": "pt"})
                (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")
            return
    write_atomic(path, lambda new: write_tensors(new, tensors, extra))


def has_single_blocks(layers: Iterable[str]) -> bool:
    """Whether layers are of Flux's transformer: Qwen-Image's has no single blocks."""
    return any(name.startswith("single_transformer_blocks.") for name in layers)


def peft_settings(modules: Mapping[str, LoraModule]) -> dict[str, Any]:
    """peft's fields for these modules: the commonest rank and alpha, and a pattern for others.

    peft searches patterns as regular expressions from any dot on; ``^`` ties one to its module.
    """
    ranks = {name: m.rank for name, m in modules.items()}
    alphas = {name: _alpha(m) for name, m in modules.items()}
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "r": int(rank),
        "lora_alpha": alpha,
        "rank_pattern": {f"^{n}": r for n, r in sorted(ranks.items()) if r != rank},
        "alpha_pattern": {f"^{n}": a for n, a in sorted(alphas.items()) if a != alpha},
        "target_modules": sorted(modules),
    }


def _check(path: Path, modules: Mapping[str, LoraModule]) -> None:
    if not modules:
        raise ValueError(f"{path}: a LoRA without modules; give at least one")
    for name, m in modules.items():
        if m.down.ndim != 2 or m.up.ndim != 2 or m.down.shape[0] != m.up.shape[1]:
            raise ValueError(
                f"{path}: {name}: down {tuple(m.down.shape)} and up {tuple(m.up.shape)} must be "
                "[rank, in] and [out, rank]"
            )


def _matrices(
    modules: Mapping[str, LoraModule], key: str, names: tuple[str, str]
) -> dict[str, Tensor]:
    down, up = names
    tensors: dict[str, Tensor] = {}
    for name, m in modules.items():
        tensors[key.format(name, down)] = m.down
        tensors[key.format(name, up)] = m.up
    return tensors


def _alpha(module: LoraModule) -> float:
    return float(module.rank if module.alpha is None else module.alpha)


def _alpha_tensor(module: LoraModule) -> Tensor:
    alpha = _alpha(module)
    single = torch.tensor(alpha, dtype=torch.float32)
    # 0.1 has no single precision of its own, and the scale is to come back exactly.
    return single if single.item() == alpha else torch.tensor(alpha, dtype=torch.float64)


def _commonest(values: Mapping[str, float]) -> float:
    counts = Counter(values.values())
    return max(sorted(counts), key=lambda value: counts[value])
