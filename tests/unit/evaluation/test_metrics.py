"""The scores: each must move when what it measures moves, and stay when only chance does."""

import numpy as np
import pytest

from pipeline.evaluation.metrics import (
    EffectJudge,
    bootstrap_mean,
    fidelity_db,
    subject_kept,
    texture_distance,
)
from pipeline.miniature.effects import EFFECTS, true_samples
from pipeline.miniature.imageops import Array, blur
from pipeline.miniature.photographs import crops

FRESH, TRUTH = 99, 1


@pytest.fixture(scope="module")
def photos() -> list[Array]:
    return [image for _, image in crops("test", 5, 64, seed=7)]


def lossy(images: Array, seed: int) -> Array:
    """What a small autoencoder does to images (N, H, W, 3): softer and a little off."""
    rng = np.random.default_rng(seed)
    soft = np.stack([blur(image, 0.7) for image in images])
    return np.clip(soft + rng.normal(0, 0.02, images.shape), 0, 1).astype(np.float32)


def test_fidelity_is_psnr_with_a_cap(photos: list[Array]) -> None:
    zero, tenth = np.zeros((8, 8, 3)), np.full((8, 8, 3), 0.1)
    assert fidelity_db(zero, tenth) == pytest.approx(20.0, abs=1e-4)
    assert fidelity_db(photos[0], photos[0]) == 60.0


@pytest.mark.parametrize("score", [fidelity_db, lambda a, b: texture_distance(a, b[None])])
def test_scores_refuse_unlike_shapes_and_nan(score, photos: list[Array]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="differ in shape"):
        score(photos[0][:32], photos[0])
    with pytest.raises(ValueError, match="NaN"):
        score(np.full_like(photos[0], np.nan), photos[0])


@pytest.mark.parametrize("name", ["snow", "halftone", "film_grain", "mosaic"])
def test_texture_distance_sees_a_texture_blurred_or_missing(name: str, photos: list[Array]) -> None:
    photo = photos[1]
    truths = true_samples(name, photo, 4, TRUTH)
    fresh = true_samples(name, photo, 3, FRESH)
    # Fresh samples have other places and phases: they must all stay below every wrong texture.
    usual = max(texture_distance(sample, truths) for sample in fresh)
    regressed = true_samples(name, photo, 8, FRESH).mean(axis=0)
    assert texture_distance(blur(fresh[0], 1.5), truths) > 2 * usual
    assert texture_distance(regressed, truths) > 2 * usual
    assert texture_distance(photo, truths) > 2 * usual


def test_texture_distance_sees_orientation_and_density(photos: list[Array]) -> None:
    photo = photos[1]
    truths = true_samples("rain", photo, 4, TRUTH)
    fresh = true_samples("rain", photo, 1, FRESH)[0]
    turned_photo = np.ascontiguousarray(np.rot90(photo))
    turned = np.rot90(true_samples("rain", turned_photo, 1, FRESH)[0], -1)
    assert texture_distance(turned, truths) > 1.5 * texture_distance(fresh, truths)
    flakes = true_samples("snow", photo, 4, TRUTH)
    sample, again = true_samples("snow", photo, 2, FRESH)
    # Half of the picture without snow: the flakes' density is halved.
    bare = np.min(true_samples("snow", photo, 8, FRESH), axis=0)
    sparse = np.concatenate([sample[:32], bare[32:]])
    assert texture_distance(sparse, flakes) > 1.5 * texture_distance(again, flakes)


def test_texture_distance_ignores_the_phase_of_a_pattern() -> None:
    x = np.arange(64) * 2 * np.pi / 8
    waves = [np.broadcast_to(0.5 + 0.4 * np.sin(x + p), (64, 64)) for p in (0, 1, 2, 3)]
    images = np.stack([np.repeat(w[..., None], 3, axis=-1) for w in waves]).astype(np.float32)
    moved = texture_distance(images[3], images[:3])
    turned = texture_distance(images[3].swapaxes(0, 1), images[:3])
    assert 2.5 * moved < turned
    assert 5 * moved < texture_distance(np.full_like(images[3], 0.5), images[:3])


def test_judge_names_fresh_samples_through_a_lossy_codec(photos: list[Array]) -> None:
    asked, wrong = 0, []
    for i, photo in enumerate(photos[:2]):
        truths = {name: lossy(true_samples(name, photo, 4, TRUTH), i) for name in EFFECTS}
        truths["source"] = lossy(photo[None], i)
        judge = EffectJudge(truths)
        assert judge.happened(lossy(photo[None], 50 + i)[0]) == "source"
        for name in EFFECTS:
            seen = judge.happened(lossy(true_samples(name, photo, 1, FRESH), 100 + i)[0])
            asked += 1
            wrong += [] if seen == name else [(i, name, seen)]
    assert asked == 100
    assert len(wrong) / asked <= 0.03, wrong


def test_judge_sees_an_effect_that_did_not_happen(photos: list[Array]) -> None:
    photo = photos[0]
    names = ["snow", "rain", "sepia", "rotate_180"]
    truths = {name: true_samples(name, photo, 4, TRUTH) for name in names}
    truths["source"] = photo[None]
    judge = EffectJudge(truths)
    assert judge.happened(0.9 * photo) == "source"
    snow = true_samples("snow", photo, 1, FRESH)[0]
    assert judge.happened(0.9 * photo + 0.1 * snow) == "source"
    distances = judge.distances(snow)
    assert min(distances, key=distances.__getitem__) == "snow" and set(distances) == set(truths)


def test_judge_refuses_what_it_cannot_compare(photos: list[Array]) -> None:
    with pytest.raises(ValueError, match="one size"):
        EffectJudge({})
    with pytest.raises(ValueError, match="one size"):
        EffectJudge({"a": photos[0][None], "b": photos[0][None, :32]})
    judge = EffectJudge({"source": photos[0][None]})
    with pytest.raises(ValueError, match="the judge knows"):
        judge.happened(photos[0][:32])
    with pytest.raises(ValueError, match="NaN"):
        judge.happened(np.full_like(photos[0], np.nan))


@pytest.mark.parametrize("name", ["negative", "rotate_180", "centre_inset", "film_grain", "fog"])
def test_subject_kept_tells_the_photograph_from_another(name: str, photos: list[Array]) -> None:
    photo, other = photos[0], photos[1]
    truths = true_samples(name, photo, 4, TRUTH)
    kept = subject_kept(true_samples(name, photo, 1, FRESH)[0], photo, truths)
    lost = subject_kept(true_samples(name, other, 1, FRESH)[0], photo, truths)
    flat = subject_kept(np.full_like(photo, 0.5), photo, truths)
    assert kept > 0.8 and kept > lost + 0.3 and flat < 0.1


def test_subject_kept_is_low_for_the_inverse(photos: list[Array]) -> None:
    truths = true_samples("negative", photos[0], 1, 0)
    assert subject_kept(photos[0], photos[0], truths) < 0.05


def test_bootstrap_interval_is_that_of_the_normal_mean() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, 400)
    estimate = bootstrap_mean(values.tolist())
    half = 1.96 * values.std() / 20
    assert estimate.mean == pytest.approx(values.mean()) and estimate.n == 400
    assert estimate.lo == pytest.approx(values.mean() - half, abs=0.03)
    assert estimate.hi == pytest.approx(values.mean() + half, abs=0.03)
    assert estimate == bootstrap_mean(values.tolist())


def test_bootstrap_of_groups_is_wider_when_groups_agree() -> None:
    level = np.random.default_rng(2).normal(0, 1, 8).repeat(25)
    groups = [f"photo{i}" for i in range(8) for _ in range(25)]
    alone, grouped = bootstrap_mean(level.tolist()), bootstrap_mean(level.tolist(), groups)
    assert grouped.mean == pytest.approx(alone.mean)
    assert grouped.hi - grouped.lo > 3 * (alone.hi - alone.lo)


@pytest.mark.parametrize(
    ("values", "groups"), [([], None), ([1.0, float("nan")], None), ([1.0, 2.0], ["a"])]
)
def test_bootstrap_refuses_bad_values(values: list[float], groups: list[str] | None) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the message differs by case
        bootstrap_mean(values, groups)
