"""The names in LoRA files, and the transformer's layers that they mean.

Seen on Qwen-Image adapters: diffusers and peft (``lora_A``, with or without an adapter's name
behind it), ai-toolkit (``diffusion_model.`` before the same), ComfyUI (``diffusion_model.`` and
``lora_down``), musubi-tuner and Kohya (``lora_unet_`` and module paths whose dots became
underscores), OneTrainer (``lora_transformer_``), SimpleTuner (``lycoris_``), and query, key and
value fused into one layer.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.models.lora.types import Shapes
from pipeline.problems import Problem

Part = Literal["down", "up", "alpha"]

PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
FLAT_PREFIXES = ("lora_unet_", "lora_transformer_", "lycoris_")
# What some trainers fuse: the rows of such an ``up`` are its layers' rows in this order.
FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "qkv": ("to_q", "to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "add_qkv_proj": ("add_q_proj", "add_k_proj", "add_v_proj"),
}
_KEYS: tuple[tuple[re.Pattern[str], Part], ...] = (
    (re.compile(r"(.+)\.lora_A(?:\.[^.]+)?\.weight"), "down"),
    (re.compile(r"(.+)\.lora_B(?:\.[^.]+)?\.weight"), "up"),
    (re.compile(r"(.+)\.(?:lora_down|lora\.down|lora_linear_layer\.down)\.weight"), "down"),
    (re.compile(r"(.+)\.(?:lora_up|lora\.up|lora_linear_layer\.up)\.weight"), "up"),
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
        re.compile(r"^(lora_te\d?[_.]|text_encoders?(_\d)?\.)"),
        "a LoRA of the text encoder",
        "train the adapter on the transformer alone",
    ),
)


@dataclass(frozen=True)
class Place:
    """What a key holds: a part of the LoRA of ``modules``, several where ``name`` is fused."""

    name: str
    part: Part
    modules: tuple[str, ...]


def arrange(
    file: str, keys: Iterable[str], layers: Shapes | None
) -> tuple[dict[str, Place], list[Problem]]:
    """The place of each key, and a problem for each key without one or in another's.

    ``layers`` are the transformer's own; without them flattened names are problems.
    """
    flat = None if layers is None else _flattened(layers)
    places: dict[str, Place] = {}
    problems: list[Problem] = []
    taken: dict[tuple[str, Part], str] = {}
    for key in keys:
        place = _place(file, key, layers, flat)
        if isinstance(place, Problem):
            problems.append(place)
            continue
        before = [taken[m, place.part] for m in place.modules if (m, place.part) in taken]
        if before:
            what = f"the same tensor as {before[0]}"
            problems.append(Problem(file, key, None, what, "keep one of them"))
            continue
        places[key] = place
        taken |= {(m, place.part): key for m in place.modules}
    return places, problems


def _place(
    file: str, key: str, layers: Shapes | None, flat: Mapping[str, list[str]] | None
) -> Place | Problem:
    for pattern, what, remedy in _FOREIGN:
        if pattern.search(key):
            return Problem(file, key, None, what, remedy)
    matches = ((pattern.fullmatch(key), part) for pattern, part in _KEYS)
    found_part = next(((match[1], part) for match, part in matches if match), None)
    if found_part is None:
        remedy = "give a LoRA with lora_A/lora_B or lora_down/lora_up and alpha keys only"
        return Problem(file, key, None, "unknown key", remedy)
    name, part = found_part
    while prefix := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    if prefix := next((p for p in FLAT_PREFIXES if name.startswith(p)), ""):
        if flat is None:
            what = "a module path whose dots are underscores: only the model's layers can tell it"
            return Problem(
                file, key, None, what, "give the model's folder as well (convert --base)"
            )
        found = flat.get(name.removeprefix(prefix), [])
        if not found:
            what = "the model has no linear layer of that name, dots as underscores"
            return Problem(file, key, None, what, "use a LoRA for this model")
        if len(found) > 1:
            what = f"ambiguous: the model has {' and '.join(found)}"
            return Problem(file, key, None, what, "save the LoRA with dots in its module paths")
        name = found[0]
    return Place(name, part, _layers_of(name, layers))


def _layers_of(name: str, layers: Shapes | None) -> tuple[str, ...]:
    """The layers that a name stands for: itself, or three where it is fused."""
    head, dot, last = name.rpartition(".")
    if last not in FUSED or (layers is not None and name in layers):
        return (name,)
    return tuple(f"{head}{dot}{part}" for part in FUSED[last])


def _flattened(layers: Iterable[str]) -> dict[str, list[str]]:
    """Names by their form with underscores for dots; more than one where that is ambiguous."""
    names = dict.fromkeys(layers)
    for module in list(names):
        head, dot, last = module.rpartition(".")
        names |= dict.fromkeys(f"{head}{dot}{f}" for f, parts in FUSED.items() if last == parts[0])
    flat: dict[str, list[str]] = {}
    for name in names:
        flat.setdefault(name.replace(".", "_"), []).append(name)
    return flat
