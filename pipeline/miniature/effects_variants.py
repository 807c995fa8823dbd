"""Parameter variants of the fifty: an effect on a part of the picture, the rest as it was.

They make a bank of up to 199 effects, of which many share most of their words.
"""

from collections.abc import Iterable, Iterator

import numpy as np

from pipeline.miniature.effect_spec import EffectSpec, Sampler
from pipeline.miniature.imageops import Array

HALVES = ("left", "upper", "right")
# It has the left half as it was: on the right half only it is the effect itself.
SAME = ("mirror_halves_right",)


def variants(effects: Iterable[EffectSpec]) -> Iterator[EffectSpec]:
    """All effects on the left half, then all on the upper, then all on the right."""
    specs = list(effects)
    for half in HALVES:
        for spec in specs:
            if (name := f"{spec.name}_{half}") in SAME:
                continue
            yield EffectSpec(
                name,
                spec.family,
                f"{spec.prompt} on the {half} half only",
                f"{spec.description} on the {half} half",
                on_half(spec.sample, half),
            )


def on_half(sample: Sampler, half: str) -> Sampler:
    """A sampler whose outcome is kept on one half alone."""

    def partly(image: Array, rng: np.random.Generator) -> Array:
        height, width = image.shape[:2]
        parts = {
            "left": (slice(None), slice(width // 2)),
            "upper": (slice(height // 2), slice(None)),
            "right": (slice(None), slice(width // 2, None)),
        }
        here = parts[half]
        outcome = image.copy()
        outcome[here] = sample(image, rng)[here]
        return outcome

    return partly
