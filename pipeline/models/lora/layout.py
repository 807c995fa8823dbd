"""Which trainer's or program's style a LoRA file is in, by its keys: for people to read."""

from collections.abc import Iterable

from pipeline.models.lora.alphas import ADAPTER_FILE
from pipeline.models.lora.keys import FLAT_PREFIXES


def layout_of(file_name: str, keys: Iterable[str]) -> str:
    """Such as ``peft``, ``ComfyUI`` or ``Kohya``; ``mixed`` where keys differ in style.

    Nothing hangs on it: :func:`~pipeline.models.lora.read.read_lora` takes each key for itself.
    """
    styles = {_style(key) for key in keys if not key.endswith(".alpha")}
    if len(styles) != 1:
        return "mixed" if styles else "empty"
    style = styles.pop()
    # peft's own file has no adapter's name in its keys, and diffusers may have its prefix.
    return "peft" if file_name == ADAPTER_FILE and style == "diffusers" else style


def _style(key: str) -> str:
    if key.startswith(FLAT_PREFIXES):
        return "Kohya"
    if key.startswith("diffusion_model."):
        return "ai-toolkit" if ".lora_A" in key else "ComfyUI"
    if key.startswith("base_model.model."):
        return "peft"
    return "diffusers" if ".lora_A" in key or ".lora_B" in key else "lora_down/lora_up"
