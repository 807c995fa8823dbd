"""Qwen-Image-Edit as an editor: what the distillation needs of the model, and nothing else.

One class for both sizes. It is built from a diffusers folder (``QwenImageEditPlusPipeline``
layout) and follows that pipeline step by step (same resizing, template, packing, normalising),
but batched, and in parts: a training process loads the transformer alone, an encoding process
the text encoder and the autoencoder alone.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    FlowMatchEulerDiscreteScheduler,
    QwenImageTransformer2DModel,
)
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2VLProcessor

from pipeline.models.editor import Conditions
from pipeline.models.processor import load_processor

Part = Literal["transformer", "vae", "text"]

# QwenImageEditPlusPipeline's own template; its constant 64 is the length of the system part.
TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter or "
    "modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n{}"
    "<|im_end|>\n<|im_start|>assistant\n"
)
PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
# The stock pipeline's constants, used where the folder has no ``collection_sizes.json``.
STOCK_SIDE, STOCK_CONDITION_SIDE = 1024, 384
SIZES_FILE = "collection_sizes.json"


def fit_area(side: int, width: int, height: int) -> tuple[int, int]:
    """(width, height), multiples of 32, of about ``side`` squared pixels, same aspect ratio."""
    ratio = width / height
    w = math.sqrt(side * side * ratio)
    return max(32, round(w / 32) * 32), max(32, round(w / ratio / 32) * 32)


@dataclass(frozen=True)
class ImageSizes:
    """About how large pictures are, in pixels a side: edited, and shown to the text encoder."""

    side: int = STOCK_SIDE
    condition_side: int = STOCK_CONDITION_SIDE


def image_sizes(folder: Path) -> ImageSizes:
    """A model folder's picture sizes; the stock pipeline's where the folder says nothing."""
    path = folder / SIZES_FILE
    return ImageSizes(**json.loads(path.read_text())) if path.exists() else ImageSizes()


def token_grid(folder: Path, width: int, height: int) -> tuple[int, int]:
    """(rows, columns) of the tokens that a picture of that size becomes."""
    levels = len(json.loads((folder / "vae" / "config.json").read_text())["temperal_downsample"])
    w, h = fit_area(image_sizes(folder).side, width, height)
    return h // (2 * 2**levels), w // (2 * 2**levels)


def pack(latents: Tensor) -> Tensor:
    """``[B, C, h, w]`` latents to ``[B, h/2 * w/2, 4C]`` tokens of 2 x 2 patches."""
    b, c, h, w = latents.shape
    patches = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return patches.reshape(b, (h // 2) * (w // 2), c * 4)


def unpack(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`pack`; ``grid`` is the tokens' (rows, columns)."""
    b, _, c = tokens.shape
    rows, cols = grid
    patches = tokens.view(b, rows, cols, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return patches.reshape(b, c // 4, rows * 2, cols * 2)


class QwenImageEditor:
    """The editor over a Qwen-Image-Edit folder; see :class:`pipeline.models.editor.Editor`."""

    transformer: QwenImageTransformer2DModel
    vae: AutoencoderKLQwenImage
    text_encoder: Qwen2_5_VLForConditionalGeneration
    processor: Qwen2VLProcessor

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder = folder
        self.device = device
        self.sizes = image_sizes(folder)
        self.scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")

    @classmethod
    def load(
        cls,
        folder: Path | str,
        parts: Sequence[Part],
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """Load the named parts of a folder onto ``device``, frozen.

        Raises:
            ValueError: the folder lacks a part.
        """
        folder = Path(folder)
        editor = cls(folder, torch.device(device))
        for part in parts:
            name = {"transformer": "transformer", "vae": "vae", "text": "text_encoder"}[part]
            if not (folder / name / "config.json").exists():
                raise ValueError(
                    f"{folder}: no {name}/config.json; the model must be a diffusers folder "
                    "(QwenImageEditPlusPipeline layout)"
                )
            match part:
                case "transformer":
                    editor.transformer = _frozen(
                        QwenImageTransformer2DModel.from_pretrained(
                            folder, subfolder=name, torch_dtype=dtype
                        ),
                        device,
                    )
                case "vae":
                    editor.vae = _frozen(
                        AutoencoderKLQwenImage.from_pretrained(
                            folder, subfolder=name, torch_dtype=dtype
                        ),
                        device,
                    )
                case "text":
                    editor.text_encoder = _frozen(
                        Qwen2_5_VLForConditionalGeneration.from_pretrained(
                            folder / name, dtype=dtype
                        ),
                        device,
                    )
                    editor.processor = load_processor(folder / "processor")
        return editor

    def output_size(self, image: Image.Image) -> tuple[int, int]:
        """(width, height) at which an image is edited: about ``side`` squared pixels."""
        return fit_area(self.sizes.side, *image.size)

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Latent tokens ``[N, C]`` (normalised, fp32, on the CPU) of each image."""
        preprocess = VaeImageProcessor(vae_scale_factor=16)
        encoded: list[Tensor] = []
        for image in images:
            width, height = self.output_size(image)
            pixels = preprocess.preprocess(image, height, width).unsqueeze(2)
            pixels = pixels.to(self.device, self.vae.dtype)
            latents = self.vae.encode(pixels).latent_dist.mode()
            encoded.append(pack(self.normalise(latents)[:, :, 0])[0].float().cpu())
        return encoded

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Latent tokens ``[B, N, C]`` to pictures ``[B, 3, H, W]`` in [0, 1], fp32."""
        latents = unpack(tokens.to(self.device, self.vae.dtype), grid).unsqueeze(2)
        mean, std = self._statistics(latents)
        pictures: Tensor = self.vae.decode(latents * std + mean).sample[:, :, 0]
        return (pictures.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_prompt(self, prompt: str, images: Sequence[Image.Image]) -> Tensor:
        """Text-encoder states ``[L, D]`` of a prompt about its source images, fp32 on the CPU."""
        condition = [
            image.resize(fit_area(self.sizes.condition_side, *image.size), Image.Resampling.LANCZOS)
            for image in images
        ]
        pictures = "".join(PICTURE.format(i + 1) for i in range(len(images)))
        inputs = self.processor(
            text=[TEMPLATE.format(pictures + prompt)],
            images=condition,
            padding=True,
            return_tensors="pt",
        ).to(self.device)
        states: Tensor = self.text_encoder(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            pixel_values=inputs["pixel_values"],
            image_grid_thw=inputs["image_grid_thw"],
            output_hidden_states=True,
        ).hidden_states[-1]
        return states[0, self.template_length :].float().cpu()

    @property
    def template_length(self) -> int:
        """Tokens of the template before the user's words: dropped from the embeddings."""
        prefix = TEMPLATE.split("{}")[0]
        return len(self.processor.tokenizer(prefix)["input_ids"])

    def velocity(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The network's ``v = noise - x0`` at ``x_t`` ``[B, N, C]``, ``t`` ``[B]`` in [0, 1].

        Runs under whichever adapters are selected (:mod:`pipeline.models.adapters`).
        """
        dtype = self.transformer.dtype
        tokens = torch.cat([x_t, conditions.sources], dim=1).to(dtype)
        output: Tensor = self.transformer(
            hidden_states=tokens,
            timestep=t.to(dtype),
            encoder_hidden_states=conditions.embeds.to(dtype),
            encoder_hidden_states_mask=conditions.mask,
            img_shapes=[conditions.shapes] * x_t.shape[0],
            return_dict=False,
        )[0]
        return output[:, : x_t.shape[1]].float()

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        shape = (1, -1, 1, 1, 1)
        config = self.vae.config
        mean = torch.tensor(config.latents_mean, device=like.device, dtype=like.dtype)
        std = torch.tensor(config.latents_std, device=like.device, dtype=like.dtype)
        return mean.view(shape), std.view(shape)

    def normalise(self, latents: Tensor) -> Tensor:
        """Autoencoder latents to zero mean and unit variance a channel."""
        mean, std = self._statistics(latents)
        return (latents - mean) / std


def _frozen(module: torch.nn.Module, device: str | torch.device) -> Any:
    return module.to(device).eval().requires_grad_(False)
