"""The editor protocol: all that the distillation asks of an image-editing model.

A model family is added by writing one class with these methods (``qwen_image_edit.py`` and
``flux_kontext.py``) and its entry in ``families.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor

from pipeline.models.geometry import Geometry, Size, TokenShape

Part = Literal["transformer", "vae", "text"]


@dataclass(frozen=True)
class Conditions:
    """What a batch of predictions is conditioned on.

    embeds ``[B, L, D]`` text-encoder states, zero-padded; mask ``[B, L]`` 1 where valid, or None
    where nothing is padded; sources ``[B, M, C]`` latent tokens of one to three source images,
    one after another; shapes: the target's token shape, then each source's (one bucket a batch);
    pooled ``[B, P]``: a second text encoder's one vector a prompt, or None where a family has no
    such encoder.
    """

    embeds: Tensor
    mask: Tensor | None
    sources: Tensor
    shapes: list[TokenShape]
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def to(self, device: torch.device) -> "Conditions":
        """The same conditions on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        pooled = None if self.pooled is None else self.pooled.to(device)
        sources = self.sources.to(device)
        return Conditions(self.embeds.to(device), mask, sources, self.shapes, pooled)

    def rows(self, rows: Sequence[int]) -> "Conditions":
        """Some rows of the batch, padding kept."""
        index = list(rows)
        mask = None if self.mask is None else self.mask[index]
        pooled = None if self.pooled is None else self.pooled[index]
        return Conditions(self.embeds[index], mask, self.sources[index], self.shapes, pooled)


class Editor(Protocol):
    """A frozen image-editing model; adapters are selected outside (``adapters.py``).

    A process loads the parts that it needs: ``velocity`` needs the transformer, ``encode_images``,
    ``encode_pixels`` and ``decode`` the autoencoder, the prompts the text encoders.
    """

    device: torch.device
    transformer: Any
    scheduler: Any

    @property
    def geometry(self) -> Geometry:
        """How this model sizes pictures."""
        ...

    def velocity(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """``v = noise - x0`` at ``x_t`` ``[B, N, C]``, ``t`` ``[B]`` in [0, 1]."""
        ...

    def encode_images(
        self, images: Sequence[Image.Image], size: Size | None = None
    ) -> list[Tensor]:
        """Latent tokens ``[N, C]`` (normalised, fp32, on the CPU) of each image.

        At ``size``, or where none is given at each image's own size as a source.
        """
        ...

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Pictures ``[B, 3, H, W]`` in [-1, 1] to latent tokens ``[B, N, C]``."""
        ...

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Latent tokens ``[B, N, C]`` to pictures ``[B, 3, H, W]`` in [0, 1], fp32.

        ``grid`` is the tokens' (rows, columns).
        """
        ...

    def encode_prompt(self, prompt: str, images: Sequence[Image.Image]) -> Tensor:
        """Text-encoder states ``[L, D]`` of a prompt about its source images, fp32 on the CPU."""
        ...

    def pool_prompt(self, prompt: str) -> Tensor | None:
        """The second text encoder's vector ``[P]`` of a prompt, or None without such an encoder."""
        ...


def batch_conditions(
    embeds: Sequence[Tensor],
    sources: Sequence[Tensor],
    shapes: list[TokenShape],
    pooled: Sequence[Tensor] | None = None,
) -> Conditions:
    """Stack single conditions (``[L_i, D]``, ``[M, C]`` and ``[P]`` each) into a padded batch."""
    longest = max(e.shape[0] for e in embeds)
    first = embeds[0]
    padded = first.new_zeros(len(embeds), longest, first.shape[1])
    mask = torch.zeros(len(embeds), longest, dtype=torch.long, device=first.device)
    for i, e in enumerate(embeds):
        padded[i, : e.shape[0]] = e
        mask[i, : e.shape[0]] = 1
    return Conditions(
        embeds=padded,
        mask=None if mask.all() else mask,
        sources=torch.stack(list(sources)),
        shapes=shapes,
        pooled=None if pooled is None else torch.stack(list(pooled)),
    )


def concatenate(*parts: Conditions) -> Conditions:
    """One batch of several, padded to the longest prompt."""
    assert all(p.shapes == parts[0].shapes for p in parts), "one batch, one bucket"
    embeds: list[Tensor] = []
    for part in parts:
        for i in range(len(part)):
            length = part.embeds.shape[1] if part.mask is None else int(part.mask[i].sum())
            embeds.append(part.embeds[i, :length])
    sources = [s for part in parts for s in part.sources]
    pooled = [p for part in parts if part.pooled is not None for p in part.pooled]
    return batch_conditions(embeds, sources, parts[0].shapes, pooled or None)
