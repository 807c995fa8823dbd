"""A random FLUX.1 Kontext folder of miniature size: the stock classes, built from configs."""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

from pipeline.models.geometry import SIZES_FILE

SIDE = 64
LETTERS = "abcdefghijklmnopqrstuvwxyz"
POOLED, STATES = 20, 24


def write_tiny_flux(folder: Path, seed: int = 0) -> Path:
    """A whole folder in ``FluxKontextPipeline`` layout; nothing in it is trained."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    clip, t5 = _clip_tokenizer(), _t5_tokenizer()
    parts = {
        "transformer": FluxTransformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=STATES,
            pooled_projection_dim=POOLED,
            guidance_embeds=True,
            axes_dims_rope=(4, 6, 6),
        ),
        "vae": AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.36,
            shift_factor=0.12,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(clip),
                hidden_size=POOLED,
                intermediate_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                bos_token_id=clip.bos_token_id,
                eos_token_id=clip.eos_token_id,
                pad_token_id=clip.pad_token_id,
            )
        ),
        "text_encoder_2": T5EncoderModel(
            T5Config(vocab_size=len(t5), d_model=STATES, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        ),
        "tokenizer": clip,
        "tokenizer_2": t5,
        # Kontext's own: the shift grows with the picture.
        "scheduler": FlowMatchEulerDiscreteScheduler(
            shift=3.0, use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15
        ),
    }
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    index: dict[str, object] = {"_class_name": "FluxKontextPipeline"}
    for name, part in parts.items():
        library = "diffusers" if hasattr(part, "_class_name") else type(part).__module__
        index[name] = [library.split(".")[0], type(part).__name__]
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    (folder / SIZES_FILE).write_text(json.dumps({"side": SIDE}))
    return folder


def _clip_tokenizer() -> CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77
    )


def _t5_tokenizer() -> T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(letter, -3.0) for letter in LETTERS]
    return T5TokenizerFast(vocab=pieces, extra_ids=0)
