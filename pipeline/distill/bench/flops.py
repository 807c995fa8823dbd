"""Floating-point operations of the Qwen-Image transformer, by its own layers' shapes."""

from typing import Any

from torch import nn

from pipeline.models.lora_formats import linear_shapes

# A forward whose output is differentiated, with a frozen base: the base's linear layers and the
# attention pass gradients to their inputs only. Attention's backward has 2.5 forwards' matrix
# products; it is counted as 2.
LORA_BACKWARD = 2


def forward_flops(transformer: nn.Module, pictures: int, words: int, rank: int = 0) -> int:
    """Of one sample of ``pictures`` picture tokens and ``words`` prompt tokens, multiply-add = 2.

    With ``rank`` a LoRA on all linear layers of the blocks is counted in.
    """
    config: Any = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    total = 0
    for name, (out, into) in linear_shapes(transformer).items():
        rows = _rows(name, pictures, words)
        total += 2 * rows * out * into
        if rank and name.startswith("transformer_blocks."):
            total += 2 * rows * rank * (out + into)
    attention = 2 * 2 * (pictures + words) ** 2 * int(width)
    layers = int(config.num_layers)
    return total + layers * attention


def training_flops(forward: int, adapters: int) -> int:
    """Useful operations of a forward and backward: ``forward`` without adapters, theirs beside.

    What checkpointing computes again is not useful, so it is not in here.
    """
    return 2 * forward + (1 + LORA_BACKWARD) * adapters


def _rows(name: str, pictures: int, words: int) -> int:
    """The tokens that a linear layer sees."""
    last = name.split(".", 2)[-1] if name.startswith("transformer_blocks.") else name
    if last.startswith(("time_text_embed", "norm_out", "img_mod", "txt_mod")):
        return 1
    if last.startswith(("txt_", "attn.add_", "attn.to_add_out")):
        return words
    return pictures
