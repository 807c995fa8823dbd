"""The fifty effects: their shapes, their chance, and that none is weak or a copy of another."""

import re
from collections import Counter

import numpy as np
import pytest

from pipeline.evaluation.metrics import EffectJudge
from pipeline.miniature.effects import EFFECTS, NEW_EFFECTS, VARIANTS, true_samples
from pipeline.miniature.imageops import Array, blur, hsv_to_rgb, luminance, resize, rgb_to_hsv
from pipeline.miniature.photographs import crops

OWN = EFFECTS | NEW_EFFECTS
DRAWN_FROM_CHANCE = [name for name, spec in OWN.items() if spec.family == "textured"]


@pytest.fixture(scope="module")
def photos() -> list[Array]:
    return [image for _, image in crops("test", 4, 64, seed=3)]


def test_fifty_effects_of_three_families() -> None:
    families = Counter(spec.family for spec in EFFECTS.values())
    assert sum(families.values()) == 50
    assert set(families) == {"tone", "layout", "textured"}
    assert families["textured"] >= 17 and min(families.values()) >= 12


def test_the_four_to_add_later_are_not_of_the_fifty() -> None:
    assert len(NEW_EFFECTS) == 4 and not NEW_EFFECTS.keys() & EFFECTS.keys()
    assert {spec.family for spec in NEW_EFFECTS.values()} == {"tone", "layout", "textured"}


def test_words_are_plain_and_not_repeated() -> None:
    for name, spec in OWN.items():
        assert spec.name == name and re.fullmatch(r"[a-z0-9_]+", name)
        assert re.fullmatch(r"[a-z ]+", spec.prompt), spec.prompt
        assert re.fullmatch(r"[a-z ]+", spec.description), spec.description
        assert 4 <= len(spec.prompt.split()) <= 10
        assert 4 <= len(spec.description.split()) <= 9
    assert len({spec.prompt for spec in OWN.values()}) == 54
    assert len({spec.description for spec in OWN.values()}) == 54


def test_prompts_share_words_so_that_they_can_bleed() -> None:
    for opening in ("turn the photo into", "cover the photo with", "old film look"):
        assert sum(spec.prompt.startswith(opening) for spec in EFFECTS.values()) >= 2


@pytest.mark.parametrize("name", OWN)
def test_samples_are_images_and_repeat_with_the_seed(name: str, photos: list[Array]) -> None:
    before = photos[0].copy()
    first = true_samples(name, photos[0], 2, seed=5)
    assert first.shape == (2, 64, 64, 3) and first.dtype == np.float32
    assert np.isfinite(first).all() and first.min() >= 0 and first.max() <= 1
    assert np.array_equal(first, true_samples(name, photos[0], 2, seed=5))
    assert np.array_equal(first[:1], true_samples(name, photos[0], 1, seed=5))
    assert np.array_equal(photos[0], before)


@pytest.mark.parametrize("name", OWN)
def test_only_textured_effects_differ_between_draws(name: str, photos: list[Array]) -> None:
    one, two = true_samples(name, photos[0], 2, seed=5)
    other = true_samples(name, photos[0], 1, seed=6)[0]
    if name in DRAWN_FROM_CHANCE:
        assert np.abs(one - two).mean() > 0.02 and np.abs(one - other).mean() > 0.02
    else:
        assert np.array_equal(one, two) and np.array_equal(one, other)


@pytest.mark.parametrize("name", OWN)
def test_each_effect_changes_a_photograph_a_lot(name: str, photos: list[Array]) -> None:
    changes = [np.abs(true_samples(name, p, 1, seed=1)[0] - p).mean() for p in photos]
    assert np.mean(changes) >= 0.08


def test_no_two_effects_look_alike(photos: list[Array]) -> None:
    samples = {name: true_samples(name, photos[1], 1, seed=1)[0] for name in OWN}
    names = list(samples)
    near = [
        (a, b)
        for i, a in enumerate(names)
        for b in names[i + 1 :]
        if np.abs(samples[a] - samples[b]).mean() < 0.06
    ]
    assert near == []


@pytest.mark.parametrize("name", DRAWN_FROM_CHANCE)
def test_textures_outlive_a_lossy_autoencoder(name: str, photos: list[Array]) -> None:
    # What two draws differ in must be coarse enough to survive the loss of the finest detail.
    one, two = true_samples(name, photos[0], 2, seed=5)
    difference = one - two
    assert blur(difference, 0.8).std() > 0.6 * difference.std()


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (96, 64)])
def test_any_size_from_32_in_steps_of_16(size: tuple[int, int], photos: list[Array]) -> None:
    photo = resize(photos[2], *size)
    for name in OWN:
        sample = true_samples(name, photo, 1, seed=0)
        assert sample.shape == (1, *size, 3) and np.isfinite(sample).all()


def test_a_variant_is_its_effect_on_one_half_and_the_photograph_on_the_other(
    photos: list[Array],
) -> None:
    photo = photos[0]
    left, upper, right = (
        true_samples(f"negative_{half}", photo, 1, 0)[0] for half in ("left", "upper", "right")
    )
    assert np.allclose(left[:, :32], 1 - photo[:, :32]) and np.allclose(left[:, 32:], photo[:, 32:])
    assert np.allclose(upper[:32], 1 - photo[:32]) and np.allclose(upper[32:], photo[32:])
    assert np.allclose(right[:, 32:], 1 - photo[:, 32:])
    assert np.allclose(right[:, :32], photo[:, :32])
    # Its chance is its own.
    snow = true_samples("snow", photo, 1, 0)[0][:, :32]
    assert not np.allclose(snow, true_samples("snow_left", photo, 1, 0)[0][:, :32], atol=0.1)


def test_variants_are_told_from_the_fifty_and_from_each_other(photos: list[Array]) -> None:
    assert len(VARIANTS) == 149 and not VARIANTS.keys() & OWN.keys()
    collection = EFFECTS | {name: VARIANTS[name] for name in [*VARIANTS][:130]}
    assert len({spec.prompt for spec in collection.values()}) == 180
    assert len({spec.description for spec in collection.values()}) == 180
    photo = photos[0]
    judge = EffectJudge(
        {name: true_samples(name, photo, 4, 1) for name in collection} | {"source": photo[None]}
    )
    wrong = [n for n in collection if judge.happened(true_samples(n, photo, 1, 99)[0]) != n]
    assert len(wrong) <= 3, wrong


def test_known_outcomes(photos: list[Array]) -> None:
    photo = photos[0]
    assert np.array_equal(true_samples("rotate_180", photo, 1, 0)[0], np.rot90(photo, 2))
    assert np.allclose(true_samples("negative", photo, 1, 0)[0], 1 - photo)
    assert np.array_equal(true_samples("diagonal_mirror", photo, 1, 0)[0], photo.swapaxes(0, 1))
    blocks = true_samples("pixelate", photo, 1, 0)[0]
    assert np.allclose(blocks[8:16, 24:32], photo[8:16, 24:32].mean(axis=(0, 1)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("sleet", (64, 64, 3), "unknown effect 'sleet'"),
        ("snow", (64, 64), r"\(H, W, 3\)"),
        ("snow", (16, 64, 3), "from 32 up"),
        ("snow", (64, 70, 3), "multiples of 16"),
    ],
)
def test_bad_requests_say_what_is_wrong(name: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        true_samples(name, np.zeros(shape, np.float32), 1, 0)


def test_image_helpers(photos: list[Array]) -> None:
    photo = photos[3]
    assert np.allclose(hsv_to_rgb(rgb_to_hsv(photo)), photo, atol=1e-5)
    assert np.allclose(resize(photo, 64, 64), photo, atol=1e-6)
    assert np.allclose(resize(photo, 32, 32).mean(), photo.mean(), atol=5e-3)
    flat = np.full((32, 48, 3), 0.4, np.float32)
    assert np.allclose(blur(flat, 3.0), 0.4, atol=1e-5) and np.allclose(luminance(flat), 0.4)
