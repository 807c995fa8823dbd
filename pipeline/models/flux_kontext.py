"""FLUX.1 Kontext as an editor: what the distillation needs of the model, and nothing else.

Built from a diffusers folder (``FluxKontextPipeline`` layout), it follows that pipeline step by
step, but batched, and in parts. Beside the prompt's states (T5, 512 tokens, padding included) the
network takes one pooled vector of the prompt (CLIP) and, being guidance-distilled, a guidance
scale, which is one constant for teachers and student here.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, T5EncoderModel, T5TokenizerFast

from pipeline.models.editor import Conditions, Part
from pipeline.models.families import FLUX_KONTEXT, KONTEXT_GUIDANCE, geometry_of
from pipeline.models.geometry import Geometry, Size, TokenShape
from pipeline.models.latents import frozen, pack, require_parts, to_pictures, unpack
from pipeline.models.loading import empty_transformer, load_transformer
from pipeline.models.precision import precision_of
from pipeline.models.quantization import Quantize

# FluxKontextPipeline's default; shorter prompts are padded to it and nothing is masked.
PROMPT_TOKENS = 512


class FluxKontextEditor:
    """The editor over a FLUX.1 Kontext folder; see :class:`pipeline.models.editor.Editor`."""

    transformer: FluxTransformer2DModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    text_encoder_2: T5EncoderModel
    tokenizer: CLIPTokenizer
    tokenizer_2: T5TokenizerFast

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")

    @classmethod
    def load(
        cls,
        folder: Path | str,
        parts: Sequence[Part],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        quantize: Quantize | None = None,
        weights: bool = True,
    ) -> Self:
        """Load the named parts of a folder onto ``device``, frozen.

        ``quantize`` and ``weights`` are of the transformer; without weights it is on the meta
        device, to be filled by what shards it.

        Raises:
            ValueError: the folder lacks a part.
        """
        folder = Path(folder)
        editor = cls(folder, torch.device(device))
        for part in parts:
            names = ["text_encoder", "text_encoder_2"] if part == "text" else [part]
            require_parts(folder, FLUX_KONTEXT.pipeline, names)
            match part:
                case "transformer":
                    kind = FluxTransformer2DModel
                    editor.transformer = (
                        load_transformer(kind, folder, device, dtype, quantize)
                        if weights
                        else empty_transformer(kind, folder, dtype)
                    )
                case "vae":
                    editor.vae = frozen(
                        AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=dtype),
                        device,
                    )
                case "text":
                    clip, t5 = folder / "text_encoder", folder / "text_encoder_2"
                    editor.text_encoder = frozen(
                        CLIPTextModel.from_pretrained(clip, dtype=dtype), device
                    )
                    editor.text_encoder_2 = frozen(
                        T5EncoderModel.from_pretrained(t5, dtype=dtype), device
                    )
                    editor.tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
                    editor.tokenizer_2 = T5TokenizerFast.from_pretrained(folder / "tokenizer_2")
        return editor

    @cached_property
    def geometry(self) -> Geometry:
        """How this model sizes pictures."""
        return geometry_of(self.folder, FLUX_KONTEXT)

    @torch.no_grad()
    def encode_images(
        self, images: Sequence[Image.Image], size: Size | None = None
    ) -> list[Tensor]:
        """Latent tokens ``[N, C]`` (normalised, fp32, on the CPU) of each image.

        At ``size``, or where none is given at each image's own size as a source.
        """
        preprocess = VaeImageProcessor(vae_scale_factor=self.geometry.pixels)
        encoded: list[Tensor] = []
        for image in images:
            width, height = size or self.geometry.source(image.size)
            pixels = preprocess.preprocess(image, height, width)
            encoded.append(self.encode_pixels(pixels)[0].float().cpu())
        return encoded

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [-1, 1] to latent tokens ``[B, N, C]``."""
        latents = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist.mode()
        config = self.vae.config
        return pack((latents - config.shift_factor) * config.scaling_factor)

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Latent tokens ``[B, N, C]`` to pictures ``[B, 3, H, W]`` in [0, 1], fp32."""
        latents = unpack(tokens.to(self.device, self.vae.dtype), grid)
        config = self.vae.config
        decoded = self.vae.decode(latents / config.scaling_factor + config.shift_factor).sample
        return to_pictures(decoded)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, images: Sequence[Image.Image]) -> Tensor:
        """T5 states ``[512, D]`` of a prompt, fp32 on the CPU; the pictures play no part."""
        tokens = self.tokenizer_2(
            [prompt],
            padding="max_length",
            max_length=PROMPT_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        states: Tensor = self.text_encoder_2(tokens.input_ids.to(self.device))[0]
        return states[0].float().cpu()

    @torch.no_grad()
    def pool_prompt(self, prompt: str) -> Tensor | None:
        """CLIP's pooled vector ``[P]`` of a prompt's first 77 tokens, fp32 on the CPU."""
        tokens = self.tokenizer(
            [prompt],
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        pooled: Tensor = self.text_encoder(tokens.input_ids.to(self.device)).pooler_output
        return pooled[0].float().cpu()

    def velocity(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The network's ``v = noise - x0`` at ``x_t`` ``[B, N, C]``, ``t`` ``[B]`` in [0, 1].

        Runs under whichever adapters are selected (:mod:`pipeline.models.adapters`).
        """
        assert conditions.pooled is not None, "Flux needs the prompts' pooled vectors"
        dtype, device = precision_of(self.transformer), x_t.device
        guidance = None
        if self.transformer.config.guidance_embeds:
            guidance = torch.full((len(x_t),), KONTEXT_GUIDANCE, device=device)
        output: Tensor = self.transformer(
            hidden_states=torch.cat([x_t, conditions.sources], dim=1).to(dtype),
            timestep=t.to(dtype),
            guidance=guidance,
            pooled_projections=conditions.pooled.to(dtype),
            encoder_hidden_states=conditions.embeds.to(dtype),
            txt_ids=torch.zeros(conditions.embeds.shape[1], 3, dtype=dtype, device=device),
            img_ids=image_ids(conditions.shapes).to(device, dtype),
            return_dict=False,
        )[0]
        return output[:, : x_t.shape[1]].float()


def image_ids(shapes: Sequence[TokenShape]) -> Tensor:
    """(picture, row, column) of every token ``[N + M, 3]``: the edit is picture 0."""
    ids = []
    for picture, (_, rows, columns) in enumerate(shapes):
        grid = torch.zeros(rows, columns, 3)
        grid[..., 0] = picture
        grid[..., 1] = torch.arange(rows)[:, None]
        grid[..., 2] = torch.arange(columns)[None, :]
        ids.append(grid.reshape(rows * columns, 3))
    return torch.cat(ids)
