"""One LoRA file into another layout, bit for bit."""

from collections import Counter
from pathlib import Path

from pipeline.models.lora_formats import (
    Layout,
    LoraFile,
    has_single_blocks,
    lora_problems,
    read_lora,
    transformer_shapes,
    write_lora,
)
from pipeline.problems import InputError, Problem

# Trainers record hashes of the tensors under their old names, which are not true of new ones.
_STALE = {"sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256"}


def convert(source: Path, out: Path, layout: Layout, base: str | Path | None = None) -> str:
    """Write the LoRA of ``source`` to ``out``; returns a line that says what was written.

    base: a model folder or address. Names flattened with underscores (``lora_unet_``) need it, and
    with it the LoRA is checked against the model. Weights, scales and metadata come through
    unchanged.

    Raises:
        InputError: a bad LoRA, one that does not fit the base, or ``out`` is there already.
    """
    _check_out(out, layout)
    shapes = None if base is None else transformer_shapes(base)
    lora = read_lora(source, shapes)
    problems = lora_problems(lora, shapes)
    if problems:
        raise InputError(problems)
    metadata = {key: text for key, text in lora.metadata.items() if key not in _STALE}
    # A LoRA on the double blocks alone does not say by itself that it is Flux's.
    flux = has_single_blocks(shapes or ())
    write_lora(out, lora.modules, metadata, layout, flux)
    return f"{out}: {describe(lora)}, in {layout} layout"


def describe(lora: LoraFile) -> str:
    """How many modules a LoRA has, and of which ranks and scales."""
    ranks = _counted(Counter(str(m.rank) for m in lora.modules.values()))
    scales = _counted(Counter(f"{m.scale:g}" for m in lora.modules.values()))
    return f"{len(lora.modules)} modules, rank {ranks}, scale {scales}"


def _counted(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({n} of them)" for value, n in counts.most_common())


def _check_out(out: Path, layout: Layout) -> None:
    if out.exists():
        remedy = "give a new name, or remove what is there"
        raise InputError([Problem(str(out), "", None, "exists already", remedy)])
    if (layout == "peft") == (out.suffix == ".safetensors"):
        what = "peft's layout is a folder" if layout == "peft" else "not a .safetensors file's name"
        remedy = "name a folder" if layout == "peft" else "end it in .safetensors"
        raise InputError([Problem(str(out), "", None, what, remedy)])
