"""Pairs of effects: which are asked, and that the truth wins over each half of it."""

import numpy as np

from pipeline.evaluation.composition import Composition, choose_pairs, score_composition
from pipeline.miniature.effects import EFFECTS, true_samples
from pipeline.miniature.photographs import crops

FAMILIES = {name: spec.family for name, spec in EFFECTS.items()}


def test_pairs_are_of_two_families_and_repeat() -> None:
    pairs = choose_pairs(FAMILIES, 12)
    assert len({pair.name for pair in pairs}) == 12 and pairs == choose_pairs(FAMILIES, 12)
    for pair in pairs:
        assert FAMILIES[pair.first] != FAMILIES[pair.second]
        assert pair.textured == (FAMILIES[pair.second] == "textured")
    # No effect is worn out: twelve pairs have at least eighteen different ones.
    assert len({effect for pair in pairs for effect in (pair.first, pair.second)}) >= 18
    assert sum(pair.textured for pair in pairs) == 6


def test_a_small_bank_gives_the_pairs_that_it_has() -> None:
    few = {"sepia": "tone", "circle_mask": "layout", "snow": "textured"}
    names = {pair.name for pair in choose_pairs(few, 12)}
    assert names == {
        "circle_mask, then sepia",
        "sepia, then circle_mask",
        "sepia, then snow",
        "circle_mask, then snow",
    }
    assert choose_pairs({"sepia": "tone", "noir": "tone"}, 3) == []


def test_both_effects_in_turn_are_told_from_either_alone() -> None:
    photo = crops("test", 1, 64, seed=3)[0][1]
    for pair in (
        Composition("circle_mask", "sepia", textured=False),
        Composition("sepia", "snow", textured=True),
    ):
        first = true_samples(pair.first, photo, 4, 7)
        fresh = true_samples(pair.first, photo, 1, 8)[0]
        truths = {
            pair.name: np.stack(
                [true_samples(pair.second, one, 1, 7 + i)[0] for i, one in enumerate(first)]
            ),
            pair.first: first,
            pair.second: true_samples(pair.second, photo, 4, 7),
            "source": photo[None],
        }
        outputs = {
            "both": true_samples(pair.second, fresh, 1, 99)[0],
            "first": fresh,
            "second": true_samples(pair.second, photo, 1, 99)[0],
            "neither": photo,
        }
        scores = {s.method: s for s in score_composition(pair, "p", photo, truths, truths, outputs)}
        assert [scores[m].happened for m in outputs] == [
            pair.name,
            pair.first,
            pair.second,
            "source",
        ]
        assert [scores[m].bad_case for m in outputs] == [0, 1, 1, 1]
        if pair.textured:
            assert all(s.fidelity is None for s in scores.values())
            distances = {m: s.texture_distance or 0.0 for m, s in scores.items()}
            assert min(distances, key=distances.__getitem__) == "both"
        else:
            assert scores["both"].fidelity == 60 and scores["first"].fidelity < 40
