"""LoRA files: the one door to :mod:`pipeline.models.lora`."""

from pipeline.models.lora.check import (
    check_lora,
    linear_shapes,
    lora_problems,
    transformer_shapes,
)
from pipeline.models.lora.read import WEIGHTS_FILE, content_hash, lora_at_hand, read_lora
from pipeline.models.lora.types import LoraFile, LoraModule, Shapes
from pipeline.models.lora.write import (
    LAYOUTS,
    Layout,
    has_single_blocks,
    peft_settings,
    write_lora,
)

__all__ = [
    "LAYOUTS",
    "WEIGHTS_FILE",
    "Layout",
    "LoraFile",
    "LoraModule",
    "Shapes",
    "check_lora",
    "content_hash",
    "has_single_blocks",
    "linear_shapes",
    "lora_at_hand",
    "lora_problems",
    "peft_settings",
    "read_lora",
    "transformer_shapes",
    "write_lora",
]
