"""Transformers from diffusers folders: straight to the device, quantised, or without weights.

Each process reads the files for itself (the node's page cache holds them once), so that no
process ever holds a second copy to hand out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor

from pipeline.models.latents import frozen
from pipeline.models.quantization import Quantize, quantization_config

TRANSFORMER = "transformer"


def load_transformer(
    cls: Any,
    folder: Path,
    device: str | torch.device,
    dtype: torch.dtype,
    quantize: Quantize | None = None,
) -> Any:
    """A folder's transformer of diffusers' class ``cls`` on ``device``, frozen.

    With ``quantize`` the weights of its blocks' linear layers are stored so, and multiplied at
    ``dtype``.
    """
    given: dict[str, Any] = {}
    if torch.device(device).type != "cpu":
        # A file's tensors go to the device one by one; the host never has them all.
        given["device_map"] = {"": str(device)}
    if quantize is not None:
        outer = outer_layers(empty_transformer(cls, folder, dtype))
        given["quantization_config"] = quantization_config(quantize, outer)
    model = cls.from_pretrained(
        folder, subfolder=TRANSFORMER, torch_dtype=dtype, low_cpu_mem_usage=True, **given
    )
    return frozen(model, device)


def empty_transformer(cls: Any, folder: Path, dtype: torch.dtype) -> Any:
    """The transformer without weights: parameters on the meta device, all else as loaded."""
    config = cls.load_config(folder, subfolder=TRANSFORMER)
    with init_empty_weights():
        model = cls.from_config(config)
    # diffusers' own ``to`` warns of every change of type.
    return frozen(torch.nn.Module.to(model, dtype), "meta")


def outer_layers(transformer: torch.nn.Module) -> list[str]:
    """The layers outside of the blocks: small, and the first and last that numbers pass."""
    return [
        name
        for name, module in transformer.named_modules()
        if isinstance(module, torch.nn.Linear)
        and not any(name.startswith(f"{blocks}.") for blocks in _block_lists(transformer))
    ]


class BaseRows:
    """Rows of a folder's transformer parameters, each read when asked for.

    Names are those of a transformer with or without adapters on it.
    """

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, Path] = {}
        for path in weight_files(folder / TRANSFORMER):
            with safe_open(path, "pt") as file:
                self.files |= dict.fromkeys(file.keys(), path)

    def __call__(self, name: str, first: int, last: int) -> Tensor:
        """Rows ``first`` to ``last`` (exclusive) of a parameter, on the CPU."""
        key = name.replace(".base_layer.", ".")
        with safe_open(self.files[key], "pt") as file:
            rows: Tensor = file.get_slice(key)[first:last]
        return rows


def weight_files(folder: Path) -> list[Path]:
    """A diffusers part's safetensors files: those that its index names, or its only one.

    Raises:
        ValueError: there are none, or an index that names a file elsewhere.
    """
    indices = sorted(folder.glob("*.safetensors.index.json"))
    if not indices:
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ValueError(f"{folder}: {len(files)} safetensors files and no index of them")
        return files
    names = sorted(set(json.loads(indices[0].read_text())["weight_map"].values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{indices[0]}: names a file outside of its folder")
    return [folder / name for name in names]


def _block_lists(transformer: torch.nn.Module) -> Iterator[str]:
    for name, child in transformer.named_children():
        if isinstance(child, torch.nn.ModuleList):
            yield name
