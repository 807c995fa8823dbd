"""Reading a LoRA file: every tensor accounted for, whichever of the usual styles it uses."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline import mirror
from pipeline.models.lora.alphas import (
    ADAPTER_FILE,
    CONFIG_FILE,
    METADATA_KEY,
    agreed_alpha,
    declared_alphas,
)
from pipeline.models.lora.keys import Part, Place, arrange
from pipeline.models.lora.report import shortened
from pipeline.models.lora.types import LoraFile, LoraModule, Shapes
from pipeline.models.safetensors_files import AGAIN, read_header
from pipeline.problems import InputError, Problem

WEIGHTS_FILE = "pytorch_lora_weights.safetensors"  # as stock diffusers names it
Declared = Callable[[str], float | None]


def read_lora(path: str | Path, layers: Shapes | None = None) -> LoraFile:
    """Read a safetensors LoRA, or a folder of one, onto the CPU in its own precision.

    Accepts every style of :mod:`pipeline.models.lora.keys`, mixed if need be. ``layers`` are the
    transformer's linear layers (see ``transformer_shapes``): names flattened with underscores
    need them, others do not. A module without an alpha tensor takes its alpha from diffusers'
    metadata in the file, or from peft's ``adapter_config.json`` beside it; where there is
    neither, alpha is the rank.

    Raises:
        InputError (a ValueError): not a whole safetensors file, or any key unknown, missing or
            doubled: all of them, in one report.
    """
    path = _in_folder(Path(path)) if Path(path).is_dir() else Path(path)
    header = read_header(path, whole_numbers=".alpha")
    keys = sorted(k for k in header if k != "__metadata__")
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata: dict[str, str] = tensors.metadata() or {}
            declared = declared_alphas(path, metadata)
            modules = assemble(str(path), keys, tensors.get_tensor, layers, declared)
    except (SafetensorError, OSError) as error:
        what = f"not a whole safetensors file ({error})"
        raise InputError([Problem(str(path), "content", None, what, AGAIN)]) from None
    said = {k: v for k, v in metadata.items() if k not in (METADATA_KEY, "format")}
    return LoraFile(path, modules, said)


def assemble(
    file: str,
    keys: Iterable[str],
    tensor: Callable[[str], Tensor],
    layers: Shapes | None,
    declared: Declared = lambda module: None,
) -> dict[str, LoraModule]:
    """The LoRA of each layer from named tensors; only those with a place are asked for.

    Raises:
        InputError: any key unknown, missing or doubled, or a tensor of the wrong form.
    """
    places, problems = arrange(file, keys, layers)
    found: dict[str, dict[Part, Tensor]] = {}
    targets: dict[str, Place] = {}
    for key, place in places.items():
        found.setdefault(place.name, {})[place.part] = tensor(key)
        targets[place.name] = place
    modules: dict[str, LoraModule] = {}
    for name, parts in found.items():
        wrong = _part_problems(file, name, parts)
        if not wrong:
            try:
                modules |= _split(_module(parts, declared(name)), targets[name], layers)
            except ValueError as error:
                wrong = [Problem(file, name, None, str(error), AGAIN)]
        problems += wrong
    if not found and not problems:
        problems.append(Problem(file, "content", None, "no tensors", "give a trained LoRA"))
    if problems:
        raise InputError(shortened(problems))
    return modules


def content_hash(path: str | Path) -> str:
    """sha256 of a LoRA file's bytes, 64 hex digits.

    Of peft's config too where the alphas are in that, beside the file.
    """
    path = Path(path)
    beside = path.with_name(CONFIG_FILE)
    parts = [path, beside] if path.name == ADAPTER_FILE and beside.is_file() else [path]
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def lora_at_hand(place: mirror.Place) -> Path:
    """The path on this machine of a LoRA file, or of a folder of one; from S3 it is fetched first.

    With all that :func:`read_lora` reads of it, and nothing else of the folder.
    """
    path = mirror.local_path(place)
    if mirror.fetch(path):
        if path.name == ADAPTER_FILE:
            mirror.fetch(path.with_name(CONFIG_FILE))
        return path
    for name in (ADAPTER_FILE, CONFIG_FILE, WEIGHTS_FILE):
        mirror.fetch(path / name)
    return path


def _in_folder(folder: Path) -> Path:
    """The LoRA in a folder that peft or diffusers wrote."""
    found = [folder / name for name in (ADAPTER_FILE, WEIGHTS_FILE) if (folder / name).is_file()]
    if len(found) != 1:
        what = f"a folder with {'both' if found else 'neither'} of {ADAPTER_FILE}, {WEIGHTS_FILE}"
        raise InputError([Problem(str(folder), "", None, what, "give the LoRA's file")])
    return found[0]


def _part_problems(file: str, module: str, parts: Mapping[Part, Tensor]) -> list[Problem]:
    problems = []
    names: tuple[tuple[Part, str], ...] = (
        ("down", "lora_A or lora_down"),
        ("up", "lora_B or lora_up"),
    )
    for part, said in names:
        if part not in parts:
            problems.append(Problem(file, module, None, f"{said} is missing", AGAIN))
        elif parts[part].ndim != 2 or 0 in parts[part].shape:
            shape = tuple(parts[part].shape)
            what = f"{said} is not a matrix"
            problems.append(Problem(file, module, shape, what, "use a LoRA of linear layers"))
    if "alpha" in parts and parts["alpha"].numel() != 1:
        shape = tuple(parts["alpha"].shape)
        problems.append(Problem(file, f"{module}.alpha", shape, "not one number", AGAIN))
    return problems


def _module(parts: Mapping[Part, Tensor], declared: float | None) -> LoraModule:
    alpha = float(parts["alpha"].item()) if "alpha" in parts else None
    try:
        agreed = agreed_alpha(alpha, declared)
    except ValueError as error:
        raise ValueError(f"two alphas: {error}") from None
    return LoraModule(parts["down"], parts["up"], agreed)


def _split(module: LoraModule, place: Place, layers: Shapes | None) -> dict[str, LoraModule]:
    """A fused module's LoRA by layer: the rows of ``up``, under the one ``down`` and scale."""
    names = place.modules
    if len(names) == 1:
        return {names[0]: module}
    rows = module.up.shape[0]
    if layers is not None and all(name in layers for name in names):
        widths = [layers[name][0] for name in names]
    else:
        widths = [rows // len(names)] * len(names)
    if sum(widths) != rows:
        wide = " + ".join(map(str, widths))
        raise ValueError(f"{rows} rows for {', '.join(names)} of {wide}")
    ups = torch.split(module.up, widths)
    return {
        name: LoraModule(module.down, up, module.alpha) for name, up in zip(names, ups, strict=True)
    }
