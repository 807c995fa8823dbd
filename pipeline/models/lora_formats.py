"""LoRA files: every tensor accounted for, whichever of the usual key styles a file uses.

A LoRA adds ``alpha / rank * up @ down`` to a linear layer's weight ``[out, in]``.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.models.families import FAMILIES, family_of
from pipeline.models.safetensors_files import AGAIN, read_header, write_tensors
from pipeline.problems import InputError, Problem

PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
_KEYS = (
    (re.compile(r"(.+)\.lora_A(?:\.[^.]+)?\.weight"), "down"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.weight"), "up"),
    (re.compile(r"(.+)\.lora_down\.weight"), "down"),
    (re.compile(r"(.+)\.lora_up\.weight"), "up"),
    (re.compile(r"(.+)\.alpha"), "alpha"),
)
# What else is found under the name of LoRA, and cannot be distilled as one.
_FOREIGN = (
    (re.compile(r"lokr_"), "LoKr keys", "convert the adapter to plain LoRA"),
    (re.compile(r"hada_"), "LoHa keys", "convert the adapter to plain LoRA"),
    (
        re.compile(r"dora_scale|lora_magnitude_vector"),
        "DoRA keys",
        "train the adapter without DoRA",
    ),
    (
        re.compile(r"^lora_(unet|transformer|te\d?)_"),
        "Kohya keys, which lose the dots of module names",
        "convert them to diffusers keys",
    ),
)
_SHOWN = 3


@dataclass(frozen=True)
class LoraModule:
    """One layer's LoRA: ``down`` ``[r, in]``, ``up`` ``[out, r]``; alpha None means the rank."""

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What ``up @ down`` is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by the transformer's own module paths, such as ``transformer_blocks.0.attn.to_q``."""

    path: Path
    modules: dict[str, LoraModule]
    metadata: dict[str, str] = field(default_factory=dict)


def read_lora(path: str | Path) -> LoraFile:
    """Read a safetensors LoRA onto the CPU, in the file's own precision.

    Accepts diffusers, peft and original (``lora_down``) keys. A module without an alpha tensor
    takes its alpha from diffusers' metadata in the file, or from peft's ``adapter_config.json``
    beside an ``adapter_model.safetensors``; where there is neither, alpha is the rank.

    Raises:
        InputError (a ValueError): not a whole safetensors file, or any key unknown, missing or
            doubled: all of them, in one report.
    """
    path = Path(path)
    header = read_header(path)
    problems: list[Problem] = []
    found: dict[str, dict[str, Tensor]] = {}
    origin: dict[tuple[str, str], str] = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            metadata: dict[str, str] = tensors.metadata() or {}
            for key in sorted(k for k in header if k != "__metadata__"):
                place = _place(key)
                if place is None:
                    problems.append(_unknown(path, key))
                elif place in origin:
                    what = f"the same tensor as {origin[place]}"
                    problems.append(Problem(str(path), key, None, what, "keep one of them"))
                else:
                    origin[place] = key
                    module, part = place
                    found.setdefault(module, {})[part] = tensors.get_tensor(key)
    except (SafetensorError, OSError) as error:
        what = f"not a whole safetensors file ({error})"
        raise InputError([Problem(str(path), "content", None, what, AGAIN)]) from None
    for module, parts in found.items():
        problems += _part_problems(path, module, parts)
    if not found and not problems:
        what = "no tensors"
        problems.append(Problem(str(path), "content", None, what, "give a trained LoRA"))
    if problems:
        raise InputError(_shortened(problems))
    declared = _declared_alphas(path, metadata)
    return LoraFile(path, {m: _module(m, parts, declared) for m, parts in found.items()}, metadata)


def write_lora(
    path: str | Path, modules: Mapping[str, LoraModule], metadata: Mapping[str, str]
) -> None:
    """Write a LoRA in diffusers keys, whole or not at all; the same LoRA gives the same bytes.

    Raises:
        ValueError: no modules, or a module whose two matrices differ in rank or precision is not
            a float type.
    """
    path = Path(path)
    if not modules:
        raise ValueError(f"{path}: a LoRA without modules; give at least one")
    tensors: dict[str, Tensor] = {}
    for name, m in modules.items():
        if m.down.ndim != 2 or m.up.ndim != 2 or m.down.shape[0] != m.up.shape[1]:
            raise ValueError(
                f"{path}: {name}: down {tuple(m.down.shape)} and up {tuple(m.up.shape)} must be "
                "[rank, in] and [out, rank]"
            )
        tensors[f"transformer.{name}.lora_A.weight"] = m.down
        tensors[f"transformer.{name}.lora_B.weight"] = m.up
        if m.alpha is not None and m.alpha != m.rank:
            tensors[f"transformer.{name}.alpha"] = torch.tensor(m.alpha, dtype=torch.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_tensors(temporary, tensors, metadata)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def check_lora(file: LoraFile, shapes: Mapping[str, tuple[int, int]]) -> list[str]:
    """What keeps a LoRA from fitting a transformer; see :func:`lora_problems`."""
    return [f"{p.field}: {p.what}; {p.remedy}" for p in lora_problems(file, shapes)]


def lora_problems(file: LoraFile, shapes: Mapping[str, tuple[int, int]]) -> list[Problem]:
    """Unknown modules, wrong widths, ranks that differ, weights that are no finite numbers.

    ``shapes`` are the linear layers' (out, in), as from :func:`transformer_shapes`.
    """
    problems: list[Problem] = []

    def report(place: str, value: object, what: str, remedy: str) -> None:
        problems.append(Problem(str(file.path), place, value, what, remedy))

    for name, m in file.modules.items():
        (rank, width_in), (width_out, rank_up) = m.down.shape, m.up.shape
        if name not in shapes:
            report(name, None, "the model has no such linear layer", "use a LoRA for this model")
        elif (width_out, width_in) != shapes[name]:
            what = f"the model's layer is {shapes[name]} wide (out, in)"
            report(name, (width_out, width_in), what, "use a LoRA for this model")
        if rank != rank_up:
            what = f"lora_A has rank {rank}, lora_B has rank {rank_up}"
            report(name, None, what, AGAIN)
        for part, tensor in (("lora_A", m.down), ("lora_B", m.up)):
            if not torch.isfinite(tensor).all():
                place = f"{name}.{part}.weight"
                report(place, None, "NaN or infinite weights", "train or download it again")
        if m.alpha is not None and not (math.isfinite(m.alpha) and m.alpha > 0):
            what = "alpha must be a finite number above 0"
            report(f"{name}.alpha", m.alpha, what, "give the alpha that it was trained with")
    return _shortened(problems)


def content_hash(path: str | Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def transformer_shapes(folder: str | Path) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer of the transformer of a diffusers folder, by module path.

    From ``transformer/config.json`` alone: no weights are read and no memory is taken.

    Raises:
        InputError (a ValueError): no such config, or not one of a known family's transformer.
    """
    path = Path(folder) / "transformer" / "config.json"

    def refused(place: str, value: object, what: str) -> InputError:
        remedy = f"give a diffusers folder of one of {', '.join(FAMILIES)}"
        return InputError([Problem(str(path), place, value, what, remedy)])

    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise refused("", None, f"cannot be read as JSON ({error})") from None
    found = config.get("_class_name") if isinstance(config, dict) else None
    try:
        known = [family_of(folder).transformer]
    except ValueError:
        known = [family.transformer for family in FAMILIES.values()]
    if found not in known:
        raise refused("_class_name", found, f"not one of {', '.join(known)}")
    # Layers are built one by one, on no device: a wrong count must not take all day.
    for kind in ("num_layers", "num_single_layers"):
        layers = config.get(kind, 1)
        if not isinstance(layers, int) or not 1 <= layers <= 1000:
            raise refused(kind, layers, "must be a whole number from 1 to 1000")
    # Here, because importing diffusers takes seconds that a reader of LoRA files need not wait.
    import diffusers

    try:
        with torch.device("meta"):
            model = getattr(diffusers, found).from_config(config)
    except (TypeError, ValueError, RuntimeError, ArithmeticError, LookupError) as error:
        raise refused("", None, f"not a transformer's config ({error})") from None
    return {
        name: (m.out_features, m.in_features)
        for name, m in model.named_modules()
        if isinstance(m, torch.nn.Linear)
    }


def _place(key: str) -> tuple[str, str] | None:
    """(module path, part) of a key, or None where it is no LoRA key."""
    if any(pattern.search(key) for pattern, _, _ in _FOREIGN):
        return None
    while any(key.startswith(prefix) for prefix in PREFIXES):
        for prefix in PREFIXES:
            key = key.removeprefix(prefix)
    for pattern, part in _KEYS:
        if match := pattern.fullmatch(key):
            return match[1], part
    return None


def _unknown(path: Path, key: str) -> Problem:
    for pattern, what, remedy in _FOREIGN:
        if pattern.search(key):
            return Problem(str(path), key, None, what, remedy)
    remedy = "give a LoRA with lora_A/lora_B or lora_down/lora_up and alpha keys only"
    return Problem(str(path), key, None, "unknown key", remedy)


def _part_problems(path: Path, module: str, parts: Mapping[str, Tensor]) -> list[Problem]:
    problems = []
    for part, names in (("down", "lora_A or lora_down"), ("up", "lora_B or lora_up")):
        if part not in parts:
            problems.append(Problem(str(path), module, None, f"{names} is missing", AGAIN))
        elif parts[part].ndim != 2 or 0 in parts[part].shape:
            what = f"{names} is not a matrix"
            shape = tuple(parts[part].shape)
            problems.append(Problem(str(path), module, shape, what, "use a LoRA of linear layers"))
    if "alpha" in parts and parts["alpha"].numel() != 1:
        shape = tuple(parts["alpha"].shape)
        problems.append(Problem(str(path), f"{module}.alpha", shape, "not one number", AGAIN))
    return problems


def _module(
    name: str, parts: Mapping[str, Tensor], declared: Callable[[str], float | None]
) -> LoraModule:
    alpha = float(parts["alpha"].item()) if "alpha" in parts else declared(name)
    return LoraModule(parts["down"], parts["up"], alpha)


def _declared_alphas(path: Path, metadata: Mapping[str, str]) -> Callable[[str], float | None]:
    """Alpha by module as diffusers or peft recorded it outside of the tensors."""
    config: Any = {}
    beside = path.with_name("adapter_config.json")
    source = path
    try:
        if "lora_adapter_metadata" in metadata:
            recorded = json.loads(metadata["lora_adapter_metadata"])
            config = {k.removeprefix("transformer."): v for k, v in recorded.items()}
        elif path.name == "adapter_model.safetensors" and beside.is_file():
            source = beside
            config = json.loads(beside.read_text(encoding="utf-8"))
        patterns = {k: float(v) for k, v in (config.get("alpha_pattern") or {}).items()}
        alpha = None if config.get("lora_alpha") is None else float(config["lora_alpha"])
        other = [k for k in ("use_dora", "use_rslora") if config.get(k)]
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        what = f"LoRA settings cannot be read ({error})"
        raise InputError([Problem(str(source), "lora_alpha", None, what, AGAIN)]) from None
    if other:
        what = "LoRA variants are not supported"
        raise InputError(
            [Problem(str(source), other[0], True, what, "train the adapter as a plain LoRA")]
        )

    def declared(module: str) -> float | None:
        for pattern, value in patterns.items():
            if module == pattern or module.endswith("." + pattern):
                return value
        return alpha

    return declared


def _shortened(problems: list[Problem]) -> list[Problem]:
    """At most a few of each kind: a LoRA for another model would give a thousand lines."""
    kinds: dict[tuple[str, str], int] = {}
    shown: list[Problem] = []
    for p in problems:
        # Numbers differ from layer to layer within one kind.
        kind = (re.sub(r"\d+", "0", p.what), p.remedy)
        kinds[kind] = kinds.get(kind, 0) + 1
        if kinds[kind] <= _SHOWN:
            shown.append(p)
    for (what, remedy), count in kinds.items():
        if count > _SHOWN:
            text = f"and {count - _SHOWN} more tensors or modules: {what}"
            shown.append(Problem(problems[0].file, "", None, text, remedy))
    return shown
