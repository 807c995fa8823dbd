"""The editor protocol: all that the distillation asks of an image-editing model.

A model family is added by writing one class with these methods (see ``qwen_image_edit.py``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

# (frames, rows, columns) of one picture's tokens.
TokenShape = tuple[int, int, int]


@dataclass(frozen=True)
class Conditions:
    """What a batch of predictions is conditioned on.

    embeds ``[B, L, D]`` text-encoder states, zero-padded; mask ``[B, L]`` 1 where valid, or None
    where nothing is padded; sources ``[B, M, C]`` latent tokens of the source images; shapes: the
    target's token shape, then each source's (one bucket a batch).
    """

    embeds: Tensor
    mask: Tensor | None
    sources: Tensor
    shapes: list[TokenShape]

    def __len__(self) -> int:
        return self.embeds.shape[0]

    def to(self, device: torch.device) -> "Conditions":
        """The same conditions on a device."""
        mask = None if self.mask is None else self.mask.to(device)
        return Conditions(self.embeds.to(device), mask, self.sources.to(device), self.shapes)

    def rows(self, rows: Sequence[int]) -> "Conditions":
        """Some rows of the batch, padding kept."""
        index = list(rows)
        mask = None if self.mask is None else self.mask[index]
        return Conditions(self.embeds[index], mask, self.sources[index], self.shapes)


class Editor(Protocol):
    """A frozen image-editing model; adapters are selected outside (``adapters.py``)."""

    device: torch.device
    transformer: torch.nn.Module

    def velocity(self, x_t: Tensor, t: Tensor, conditions: Conditions) -> Tensor:
        """``v = noise - x0`` at ``x_t`` ``[B, N, C]``, ``t`` ``[B]`` in [0, 1]."""
        ...


def batch_conditions(
    embeds: Sequence[Tensor], sources: Sequence[Tensor], shapes: list[TokenShape], length: int = 0
) -> Conditions:
    """Stack single conditions (``[L_i, D]`` and ``[M, C]`` each) into a padded batch.

    ``length`` pads further than the longest, so that a sample's numbers do not depend on its
    neighbours' lengths.
    """
    longest = max(length, *(e.shape[0] for e in embeds))
    first = embeds[0]
    padded = first.new_zeros(len(embeds), longest, first.shape[1])
    mask = torch.zeros(len(embeds), longest, dtype=torch.long, device=first.device)
    for i, e in enumerate(embeds):
        padded[i, : e.shape[0]] = e
        mask[i, : e.shape[0]] = 1
    return Conditions(padded, None if mask.all() else mask, torch.stack(list(sources)), shapes)


def concatenate(*parts: Conditions) -> Conditions:
    """One batch of several, padded to the longest prompt."""
    assert all(p.shapes == parts[0].shapes for p in parts), "one batch, one bucket"
    embeds: list[Tensor] = []
    for part in parts:
        for i in range(len(part)):
            length = part.embeds.shape[1] if part.mask is None else int(part.mask[i].sum())
            embeds.append(part.embeds[i, :length])
    sources = [s for part in parts for s in part.sources]
    return batch_conditions(embeds, sources, parts[0].shapes)
