"""Scores of one output image against the true outcomes of an effect, and their intervals.

All images are (H, W, 3) floats in [0, 1]; `truths` are K true samples of the effect on the same
photograph, (K, H, W, 3), passed through the same autoencoder as the output if the score is not
to include what the autoencoder loses.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from pipeline.miniature.imageops import Array, blur, luminance, resize

Image = NDArray[np.floating[Any]]

PSNR_CAP_DB = 60.0
_PATCH = 7
_PROJECTIONS = 96
# Luminance variance that is no structure: what an autoencoder leaves on a flat patch.
_FLAT = 2e-4
# Smallest spread that counts for each group of features, in the group's units: about what an
# autoencoder of 29 dB and an imperfect editor move a feature without changing the effect.
_FLOORS = {"layout": 0.05, "energy": 0.02, "skew": 0.03, "gradient": 0.02, "quantile": 0.04}
# Share of each group in the decision; without it the many layout cells would decide alone.
_SHARES = {"layout": 1.0, "energy": 1.0, "skew": 0.7, "gradient": 0.7, "quantile": 0.7}


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval [lo, hi] and the number n of values behind it."""

    mean: float
    lo: float
    hi: float
    n: int


def _checked(output: Image, *others: Image) -> list[Array]:
    arrays = [np.asarray(a, dtype=np.float32) for a in (output, *others)]
    for array in arrays:
        if array.shape[-3:] != arrays[0].shape or array.shape[-1] != 3 or not array.size:
            raise ValueError(f"images differ in shape: {[a.shape for a in arrays]}")
        if not np.isfinite(array).all():
            raise ValueError("an image holds NaN or infinity")
    return arrays


def fidelity_db(output: Image, truth: Image) -> float:
    """PSNR in dB with peak 1, at most 60. Raises ValueError on unlike shapes or NaN."""
    a, b = _checked(output, truth)
    error = float(np.mean((a - b).astype(np.float64) ** 2))
    return min(PSNR_CAP_DB, -10 * float(np.log10(max(error, 1e-12))))


def _projections() -> tuple[Array, Array]:
    """Unit directions (P, 49) for luminance patches and (P, 3) for patch colours.

    Half of the patch directions are white noise and half are smooth: natural and drawn textures
    have most of their power, and show orientation, at low frequencies.
    """
    rng = np.random.default_rng(20260)
    patches = rng.standard_normal((_PROJECTIONS, _PATCH, _PATCH)).astype(np.float32)
    for i in range(_PROJECTIONS // 2):
        patches[i] = blur(patches[i], 1.0)
    flat = patches.reshape(_PROJECTIONS, -1)
    flat -= flat.mean(axis=1, keepdims=True)
    colours = rng.standard_normal((_PROJECTIONS // 4, 3)).astype(np.float32)
    return (
        flat / np.linalg.norm(flat, axis=1, keepdims=True),
        colours / np.linalg.norm(colours, axis=1, keepdims=True),
    )


_PATCH_DIRECTIONS, _COLOUR_DIRECTIONS = _projections()


def _lattice(height: int, width: int) -> NDArray[np.bool_]:
    """A fifth of the places, slanted: a square lattice would see the phase of a pattern."""
    return np.asarray((np.arange(height)[:, None] + 2 * np.arange(width)) % 5 == 0)


def _sorted_projections(image: Array, spacing: int) -> tuple[Array, Array]:
    """Sorted projections of patches: (P, N) of structure, (P / 4, N) of colour.

    The 7 x 7 samples of a patch lie `spacing` pixels apart.
    """
    side = (_PATCH - 1) * spacing + 1
    windows = sliding_window_view(luminance(image), (side, side))[..., ::spacing, ::spacing]
    patches = windows[_lattice(*windows.shape[:2])].reshape(-1, _PATCH * _PATCH)
    # The directions sum to zero, so they take the patch's mean off by themselves.
    structure = np.sort(_PATCH_DIRECTIONS @ patches.T, axis=1)
    colours = image[_lattice(*image.shape[:2])]
    return structure, np.sort(_COLOUR_DIRECTIONS @ colours.T, axis=1)


def _sorted_gap(output: Array, truths: list[Array]) -> float:
    """Mean 1-D Wasserstein distance between (P, N) sorted values and those of K images pooled."""
    # A stable sort merges runs that are sorted already.
    pooled = np.sort(np.concatenate(truths, axis=1), axis=1, kind="stable")
    count = output.shape[1]
    quantiles = pooled.reshape(output.shape[0], count, len(truths))
    # Every K neighbours of the pooled K * N values face one of the output's N values.
    return float(np.abs(quantiles - output[:, :, None]).mean())


def texture_distance(output: Image, truths: Image) -> float:
    """Sliced Wasserstein distance between the patches of an output and of K true samples.

    Patches are 7 x 7, at full resolution and at half (blurred, every other pixel). Compared are
    the distributions of 96 fixed projections of mean-removed luminance and of 24 projections of
    colour, so where an element lies does not count. Unit: pixel value, [0, 1]: a white texture of
    contrast (standard deviation) c that is missing altogether costs about 0.8 c in the structure
    part at full resolution. The structure parts of both resolutions are added, and half of each
    colour part. A true sample is not at 0
    from K others: compare with what fresh true samples get. Lower is better. Raises ValueError on
    unlike shapes, NaN, or sides below 14.
    """
    out, true = _checked(output, truths)
    if true.ndim != 4:
        raise ValueError(f"truths must be (K, H, W, 3), not {true.shape}")
    if min(out.shape[:2]) < 2 * _PATCH:
        raise ValueError(f"patches need sides of {2 * _PATCH} pixels, not {out.shape[:2]}")
    total = 0.0
    for spacing in (1, 2):
        images = [blur(a, 1.0) if spacing == 2 else a for a in (out, *true)]
        (structure, colour), *samples = [_sorted_projections(a, spacing) for a in images]
        total += _sorted_gap(structure, [s for s, _ in samples])
        total += 0.5 * _sorted_gap(colour, [c for _, c in samples])
    return total


def _local_moments(a: Array, b: Array, sigma: float) -> tuple[Array, Array, Array]:
    """Covariance and both variances of two maps (H, W) in a Gaussian window."""
    stack = np.stack([a, b, a * b, a * a, b * b], axis=-1)
    mean_a, mean_b, ab, aa, bb = np.moveaxis(blur(stack, sigma), -1, 0)
    return ab - mean_a * mean_b, np.clip(aa - mean_a**2, 0, None), np.clip(bb - mean_b**2, 0, None)


def _local_correlation(a: Array, b: Array, sigma: float) -> Array:
    """Correlation (H, W) of two maps in a Gaussian window, 0 where either is flat."""
    covariance, var_a, var_b = _local_moments(a, b, sigma)
    return np.asarray(covariance / (np.sqrt(var_a * var_b) + _FLAT), dtype=np.float32)


def _structure_kept(light: Array, source: Array, truths: Array, others: Array) -> float:
    """Weighted correlation of one luminance map with the mean of `others`; see subject_kept."""
    px = min(light.shape) / 64
    total, weights = 0.0, 0.0
    for smooth in (0.0, 2.0, 4.0):
        window = max(2.0, 1.5 * smooth) * px
        maps = np.stack([light, source, others.mean(axis=0), *truths], axis=-1)
        maps = blur(maps, smooth * px) if smooth else maps
        seen, photo, other = maps[..., 0], maps[..., 1], maps[..., 2]
        samples = maps[..., 3:]
        mean, count = samples.mean(axis=-1), samples.shape[-1]
        chance = blur(samples.var(axis=-1), window) * count / max(count - 1, 1)
        _, varied, _ = _local_moments(mean, mean, window)
        # What of the mean's variance is not left over from averaging only K random draws.
        shared = np.clip(varied - chance / count, 0, None)
        from_source = np.clip(np.abs(_local_correlation(mean, photo, window)), 0, 1)
        # Strong edges count no more than a plain contrast, or a drawn frame would decide alone.
        strength = np.minimum(np.sqrt(shared), 0.1) * shared / (shared + chance + _FLAT)
        weight = strength * (0.25 + 0.75 * from_source)
        match = np.clip(_local_correlation(seen, other, window), 0, 1)
        total += float((weight * match).sum())
        weights += float(weight.sum())
    return total / weights if weights > 0 else 0.0


def subject_kept(output: Image, source: Image, truths: Image) -> float:
    """How much of what the true effect keeps of the photograph is in the output, in [0, 1].

    The local correlation of luminance between the output and the mean of the truths, over pixels
    and three scales (no blur, 2 and 4 px at 64 px). A place weighs by the structure that the
    truths share there against what differs between them, which is the effect's own chance, and
    up to four times more where that structure is the source's, at its place or inverted. A moved
    part keeps a quarter, and so does a drawn frame, which lifts the scores of effects that have
    one. The sum is divided by what a true sample gets against the other truths (by 0.2 at least):
    1 is as much as a true sample keeps, 0 no relation or the inverse. Whether the effect
    happened is not asked. Raises ValueError on unlike shapes or NaN.
    """
    out, photo, true = _checked(output, source, truths)
    if true.ndim != 4:
        raise ValueError(f"truths must be (K, H, W, 3), not {true.shape}")
    light, before, after = luminance(out), luminance(photo), luminance(true)
    kept = _structure_kept(light, before, after, after)
    ceiling = 1.0
    if len(after) > 1:
        drops = [np.delete(after, i, axis=0) for i in range(len(after))]
        scores = [
            _structure_kept(one, before, after, rest)
            for one, rest in zip(after, drops, strict=True)
        ]
        ceiling = max(0.2, float(np.mean(scores)))
    return min(1.0, kept / ceiling)


def _opponents(image: Array) -> Array:
    """(H, W, 3): luminance, blue against yellow, red against cyan."""
    light = luminance(image)
    return np.stack([light, image[..., 2] - light, image[..., 0] - light], axis=-1)


def describe(image: Array) -> dict[str, Array]:
    """Groups of features of an (H, W, 3) image in [0, 1], each group a flat array.

    layout: 8 x 8 mean colours; energy: root mean square of three octave bands of luminance and
    two colour differences, on a 4 x 4 grid and over all; skew: outer quantiles of the bands, so
    that light specks and dark ones differ; gradient: strength in 8 orientations, in quarters and
    over all; quantile: the colours' quantiles.
    """
    view = _opponents(image)
    px = min(image.shape[:2]) / 64
    levels = [view, *(blur(view, sigma * px) for sigma in (0.8, 1.6, 3.2))]
    bands = np.concatenate([a - b for a, b in pairwise(levels)], axis=-1)
    power = bands**2
    energy = np.sqrt(np.concatenate([resize(power, 4, 4).ravel(), power.mean(axis=(0, 1)).ravel()]))
    skew = np.quantile(bands[..., [0, 3, 6]], [0.02, 0.1, 0.9, 0.98], axis=(0, 1)).ravel()
    dy, dx = np.gradient(levels[1][..., 0])
    strength = np.hypot(dy, dx) * px
    angle = (np.arctan2(dy, dx) / np.pi * 8).astype(np.float32)
    # Each gradient is shared between its two neighbouring orientations, so none falls off a bin.
    apart = np.abs((angle[..., None] - np.arange(8) + 4) % 8 - 4)
    oriented = strength[..., None] * np.clip(1 - apart, 0, None)
    gradient = np.concatenate([resize(oriented, 2, 2).ravel(), oriented.mean(axis=(0, 1)).ravel()])
    quantile = np.quantile(view, [0.03, 0.25, 0.5, 0.75, 0.97], axis=(0, 1)).ravel()
    groups = {
        "layout": resize(view, 8, 8).ravel(),
        "energy": energy,
        "skew": skew,
        "gradient": gradient * 4,
        "quantile": quantile,
    }
    return {name: np.asarray(values, dtype=np.float32) for name, values in groups.items()}


class EffectJudge:
    """Says which of the given effects an edit of ONE photograph looks like.

    `truths` holds, by effect, K >= 1 true samples (K, H, W, 3) on that photograph, and under
    'source' the unchanged photograph; pass all of them through the autoencoder if the outputs
    come out of one. An output's distance to an effect is the mean over features of
    2 log(1 + gap^2 / (3 spread^2)) + log(spread): a spread wide enough to hold anything pays for
    it, and one odd feature cannot decide alone.

    Raises ValueError when there are no truths or their shapes differ.
    """

    def __init__(self, truths: Mapping[str, Image]) -> None:
        shapes = {np.shape(samples)[1:] for samples in truths.values()}
        if len(shapes) != 1 or any(np.ndim(samples) != 4 for samples in truths.values()):
            raise ValueError(f"a judge needs truths (K, H, W, 3) of one size, not {shapes}")
        self.names = tuple(truths)
        self._shape = shapes.pop()
        described = [
            [describe(np.asarray(s, dtype=np.float32)) for s in truths[name]] for name in self.names
        ]
        self._centres: dict[str, Array] = {}
        self._spreads: dict[str, Array] = {}
        for group, floor in _FLOORS.items():
            samples = [np.stack([d[group] for d in one]) for one in described]
            self._centres[group] = np.stack([s.mean(axis=0) for s in samples])
            self._spreads[group] = np.stack([_spread(s, floor) for s in samples])

    def distances(self, output: Image) -> dict[str, float]:
        """Distance of an (H, W, 3) output to every effect, lower is nearer (may be negative)."""
        if np.shape(output) != self._shape:
            raise ValueError(f"the judge knows {self._shape}, not {np.shape(output)}")
        if not np.isfinite(output).all():
            raise ValueError("the output holds NaN or infinity")
        features = describe(np.asarray(output, dtype=np.float32))
        total = np.zeros(len(self.names))
        for group, share in _SHARES.items():
            spread = self._spreads[group]
            gap = (features[group] - self._centres[group]) / spread
            cost = 2 * np.log1p(gap**2 / 3) + np.log(spread / _FLOORS[group])
            total += share * cost.mean(axis=1)
        return dict(zip(self.names, total.tolist(), strict=True))

    def happened(self, output: Image) -> str:
        """Name of the nearest effect, or 'source' when the photograph is as it was."""
        distances = self.distances(output)
        return min(distances, key=distances.__getitem__)


def _spread(samples: Array, floor: float) -> Array:
    """Spread (F,) of K samples (K, F) of a feature group, never below the floor.

    A few samples give a poor variance for each feature, so half of it comes from the whole group.
    """
    count = len(samples)
    variance = samples.var(axis=0) * count / max(count - 1, 1)
    shared = 0.5 * variance + 0.5 * variance.mean()
    return np.asarray(np.sqrt(shared * (1 + 1 / count) + floor**2), dtype=np.float32)


def bootstrap_mean(
    values: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    n: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of the values with a 95 % percentile bootstrap interval from n resamples.

    With groups (the photograph of each value) whole groups are resampled, because scores on one
    photograph are not independent. Raises ValueError on no values, NaN, or unlike lengths.
    """
    data = np.asarray(values, dtype=np.float64)
    if not data.size or not np.isfinite(data).all():
        raise ValueError("a mean needs at least one value, and finite ones")
    if groups is not None and len(groups) != data.size:
        raise ValueError(f"{data.size} values but {len(groups)} groups")
    labels = list(range(data.size)) if groups is None else list(groups)
    order = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    index = np.array([order[label] for label in labels])
    sums, sizes = np.bincount(index, data), np.bincount(index)
    draws = np.random.default_rng(seed).integers(len(order), size=(n, len(order)))
    means = sums[draws].sum(axis=1) / sizes[draws].sum(axis=1)
    lo, hi = np.percentile(means, [2.5, 97.5])
    return Estimate(float(data.mean()), float(lo), float(hi), int(data.size))
