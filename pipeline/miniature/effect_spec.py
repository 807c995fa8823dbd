"""What an effect is: a name, its words and its true sampler."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.miniature.imageops import Array

Family = Literal["tone", "layout", "textured"]
Sampler = Callable[[Array, np.random.Generator], Array]


@dataclass(frozen=True)
class EffectSpec:
    """One effect of the miniature.

    `prompt` is what its teacher is trained with; `description` is the caption of the result, from
    which the student's prompt is made. `sample` maps an (H, W, 3) float32 image in [0, 1] to one
    true outcome of the same shape; tone and layout effects ignore the generator.
    """

    name: str
    family: Family
    prompt: str
    description: str
    sample: Sampler


def without_chance(edit: Callable[[Array], Array]) -> Sampler:
    """A sampler that always gives edit(image)."""

    def sample(image: Array, _rng: np.random.Generator) -> Array:
        return edit(image)

    return sample
