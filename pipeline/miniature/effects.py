"""The miniature's fifty effects, four to add later, and variants: each with its true sampler."""

import zlib

import numpy as np

from pipeline.miniature.effect_spec import EffectSpec
from pipeline.miniature.effects_layout import LAYOUT
from pipeline.miniature.effects_new import NEW
from pipeline.miniature.effects_particles import PARTICLES
from pipeline.miniature.effects_surfaces import SURFACES
from pipeline.miniature.effects_tone import TONE
from pipeline.miniature.effects_variants import variants
from pipeline.miniature.imageops import Array

__all__ = ["EFFECTS", "KNOWN", "NEW_EFFECTS", "VARIANTS", "EffectSpec", "true_samples"]

EFFECTS: dict[str, EffectSpec] = {
    spec.name: spec for spec in (*TONE, *LAYOUT, *PARTICLES, *SURFACES)
}
# Not of the fifty: a finished collection is asked to learn them afterwards.
NEW_EFFECTS: dict[str, EffectSpec] = {spec.name: spec for spec in NEW}
# Of the fifty, for collections that are larger.
VARIANTS: dict[str, EffectSpec] = {spec.name: spec for spec in variants(EFFECTS.values())}
KNOWN: dict[str, EffectSpec] = EFFECTS | NEW_EFFECTS | VARIANTS


def true_samples(name: str, image: Array, n: int, seed: int) -> Array:
    """n true outcomes (n, H, W, 3) of an effect on an (H, W, 3) image, float32 in [0, 1].

    Sample i depends on (seed, name, i) alone, so a longer series starts with a shorter one.
    Raises ValueError for an unknown effect, a wrong shape, or H or W below 32 or not a multiple
    of 16.
    """
    if name not in KNOWN:
        raise ValueError(f"unknown effect {name!r}; see `collectionlora miniature effects`")
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"an image must be (H, W, 3), not {image.shape}")
    if min(image.shape[:2]) < 32 or image.shape[0] % 16 or image.shape[1] % 16:
        raise ValueError(f"H and W must be multiples of 16 from 32 up, not {image.shape[:2]}")
    source = np.asarray(image, dtype=np.float32)
    outcomes = np.empty((n, *source.shape), dtype=np.float32)
    for i in range(n):
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), i])
        outcomes[i] = np.clip(KNOWN[name].sample(source, rng), 0, 1)
    return outcomes
