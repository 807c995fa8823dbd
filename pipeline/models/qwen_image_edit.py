"""Qwen-Image-Edit as an editor: what the distillation needs of the model, and nothing else.

One class for both sizes. It is built from a diffusers folder (``QwenImageEditPlusPipeline``
layout) and follows that pipeline step by step (same resizing, template, packing, normalising),
but batched, and in parts: a training process loads the transformer alone, an encoding process
the text encoder and the autoencoder alone.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Self

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

from pipeline.models.editor import Conditions, Part
from pipeline.models.families import QWEN_IMAGE_EDIT, geometry_of
from pipeline.models.geometry import Geometry, Size, fit_area, image_sizes
from pipeline.models.latents import frozen, pack, require_parts, to_pictures, unpack
from pipeline.models.loading import empty_transformer, load_transformer
from pipeline.models.precision import precision_of
from pipeline.models.processor import load_processor
from pipeline.models.quantization import Quantize

# QwenImageEditPlusPipeline's own template; its constant 64 is the length of the system part.
TEMPLATE = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, "
    "texture, objects, background), then explain how the user's text instruction should alter or "
    "modify the image. Generate a new image that meets the user's requirements while maintaining "
    "consistency with the original input where appropriate.<|im_end|>\n<|im_start|>user\n{}"
    "<|im_end|>\n<|im_start|>assistant\n"
)
PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"


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
    def bare(cls, transformer: QwenImageTransformer2DModel, device: torch.device) -> Self:
        """An editor of a transformer and no folder: it has velocities, and nothing else."""
        editor = cls.__new__(cls)
        editor.device, editor.transformer = device, transformer
        return editor

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
        folders = {"transformer": "transformer", "vae": "vae", "text": "text_encoder"}
        require_parts(folder, QWEN_IMAGE_EDIT.pipeline, [folders[part] for part in parts])
        for part in parts:
            match part:
                case "transformer":
                    kind = QwenImageTransformer2DModel
                    editor.transformer = (
                        load_transformer(kind, folder, device, dtype, quantize)
                        if weights
                        else empty_transformer(kind, folder, dtype)
                    )
                case "vae":
                    editor.vae = frozen(
                        AutoencoderKLQwenImage.from_pretrained(
                            folder, subfolder="vae", torch_dtype=dtype
                        ),
                        device,
                    )
                case "text":
                    editor.text_encoder = frozen(
                        Qwen2_5_VLForConditionalGeneration.from_pretrained(
                            folder / "text_encoder", dtype=dtype
                        ),
                        device,
                    )
                    editor.processor = load_processor(folder / "processor")
        return editor

    @cached_property
    def geometry(self) -> Geometry:
        """How this model sizes pictures."""
        return geometry_of(self.folder, QWEN_IMAGE_EDIT)

    @torch.no_grad()
    def encode_images(
        self, images: Sequence[Image.Image], size: Size | None = None
    ) -> list[Tensor]:
        """Latent tokens ``[N, C]`` (normalised, fp32, on the CPU) of each image.

        At ``size``, or where none is given at each image's own size as a source.
        """
        preprocess = VaeImageProcessor(vae_scale_factor=16)
        encoded: list[Tensor] = []
        for image in images:
            width, height = size or fit_area(self.sizes.side, *image.size)
            pixels = preprocess.preprocess(image, height, width)
            encoded.append(self.encode_pixels(pixels)[0].float().cpu())
        return encoded

    @torch.no_grad()
    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [-1, 1] to latent tokens ``[B, N, C]``."""
        frames = pixels.unsqueeze(2).to(self.device, self.vae.dtype)
        latents = self.vae.encode(frames).latent_dist.mode()
        return pack(self.normalise(latents)[:, :, 0])

    @torch.no_grad()
    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Latent tokens ``[B, N, C]`` to pictures ``[B, 3, H, W]`` in [0, 1], fp32."""
        latents = unpack(tokens.to(self.device, self.vae.dtype), grid).unsqueeze(2)
        mean, std = self._statistics(latents)
        return to_pictures(self.vae.decode(latents * std + mean).sample[:, :, 0])

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

    def pool_prompt(self, prompt: str) -> Tensor | None:
        """None: Qwen-Image-Edit has one text encoder."""
        return None

    @property
    def template_length(self) -> int:
        """Tokens of the template before the user's words: dropped from the embeddings."""
        prefix = TEMPLATE.split("{}")[0]
        return len(self.processor.tokenizer(prefix)["input_ids"])

    def velocity(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """The network's ``v = noise - x0`` at ``x_t`` ``[B, N, C]``, ``t`` ``[B]`` in [0, 1].

        Runs under whichever adapters are selected (:mod:`pipeline.models.adapters`).
        """
        dtype = precision_of(self.transformer)
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
