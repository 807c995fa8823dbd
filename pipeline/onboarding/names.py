"""Effects' names out of the names of files and folders."""

import re
import unicodedata
from pathlib import PurePath

# What trainers and people put round an effect's name.
_NOISE = re.compile(
    r"loras?|v\d+|rank\d+|r\d+|final|last|steps?\d*|epochs?\d*|e\d+|\d{4,}|fp16|bf16|fp32|"
    r"comfyui|comfy|diffusers|kohya|peft|converted|adapter|pairs?|dataset|data|images?|train"
)
_FAMILY = re.compile(
    r"^(qwen(_?image)?(_edit)?(_plus)?(_25\d\d)?|flux_?1?(_kontext)?(_dev)?)_(?=.)"
)
# Names that say what a file is, not which effect it has: its folder's name is asked instead.
_GENERIC = {
    "pytorch_lora_weights",
    "adapter_model",
    "adapter",
    "model",
    "lora",
    "weights",
    "pairs",
    "data",
    "dataset",
    "images",
    "train",
}
_STEP = re.compile(r"(?:^|[-_])(?:step|steps|epoch|e)?[-_]?0*(\d+)$", re.IGNORECASE)


def slug(text: str) -> str:
    """A text as an effect's name may be: a-z, 0-9 and _, up to 64 characters; é is e."""
    return re.sub(r"[^a-z0-9]+", "_", _folded(text)).strip("_")[:64]


def effect_name(path: PurePath) -> str:
    """The effect that a LoRA file or a folder of pairs is called after.

    ``qwen_edit_snow-lora_v2.safetensors`` and ``snow_pairs`` are both ``snow``; a generic name
    gives way to its folder's.
    """
    own = slug(path.stem if path.suffix == ".safetensors" else path.name)
    tokens = _FAMILY.sub("", own).split("_")
    for end in (-1, 0):
        while len(tokens) > 1 and _NOISE.fullmatch(tokens[end]):
            tokens.pop(end)
    name = "_".join(tokens)
    generic = own in _GENERIC or not name or _NOISE.fullmatch(name)
    if generic and path.parent.name:
        return effect_name(path.parent)
    return name or "effect"


def own_name(path: PurePath) -> str:
    """What a file or folder is called, less its training step, where a-z cannot tell it.

    Such as 雪 of ``雪-000100.safetensors``; empty where :func:`slug` keeps all of the name.
    """
    stem = path.stem if path.suffix == ".safetensors" else path.name
    name = _folded(_STEP.sub("", stem))
    return name if any(c.isalnum() and not c.isascii() for c in name) else ""


def _folded(text: str) -> str:
    """Lower case, without accents: one text however a file system spells it."""
    apart = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in apart if not unicodedata.combining(c))


def training_step(path: PurePath) -> float:
    """The step or epoch in a checkpoint's name; infinity for the one without, the last."""
    match = _STEP.search(path.stem)
    return float(match[1]) if match else float("inf")


def same_effect(name: str, other: str) -> bool:
    """Whether two names share their words: one has all the other's (``snow``, ``heavy_snow``)."""
    words, others = set(name.split("_")), set(other.split("_"))
    return words <= others or others <= words
