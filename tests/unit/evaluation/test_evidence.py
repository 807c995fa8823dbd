"""Statistics against slow loops and known distributions."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from pipeline.evaluation.evidence import (
    Cell,
    Interval,
    cells_of,
    from_json,
    matrix,
    paired,
    paired_table,
    sign_flip,
    summarise,
    table,
    to_json,
)
from pipeline.evaluation.report import ImageScore


def cells(method: str, values: np.ndarray, metric: str = "fidelity") -> list[Cell]:
    return [
        Cell(method, seed, f"effect{e}", {metric: float(values[seed, e])})
        for seed, e in product(*map(range, values.shape))
    ]


def test_a_cell_is_the_mean_over_photographs_of_what_the_family_has() -> None:
    def score(effect: str, family: str, photograph: str, value: float) -> ImageScore:
        return ImageScore(
            "student", effect, family, photograph, 0, value, value / 10, value > 1, 0.5, effect
        )

    found = cells_of([score("a", "tone", "p", 1), score("a", "tone", "q", 3)], 7)
    assert found == [Cell("student", 7, "a", {"bad_case_rate": 0.5, "subject": 0.5, "fidelity": 2})]
    (textured,) = cells_of([score("b", "textured", "p", 1)], None)
    assert set(textured.scores) == {"bad_case_rate", "subject", "texture_distance"}


def test_intervals_cover_the_spread_of_effects_and_seeds() -> None:
    values = np.random.default_rng(0).normal(20, 3, (3, 30))
    found = summarise(cells("m", values), "m", "fidelity")
    assert found is not None and found.mean == pytest.approx(values.mean())
    # Effects differ by 3 dB each: about 1.96 * 3 / sqrt(90), seeds adding their own.
    assert 0.5 < (found.hi - found.lo) / 2 < 1.5
    wide = values + np.array([[-3.0], [0.0], [3.0]])
    of_seeds = summarise(cells("m", wide), "m", "fidelity")
    assert of_seeds is not None and of_seeds.hi - of_seeds.lo > 2 * (found.hi - found.lo)


def test_effects_are_paired() -> None:
    rng = np.random.default_rng(1)
    level = rng.normal(20, 5, 20)
    mine, theirs = level + 0.5 + rng.normal(0, 0.1, (3, 20)), level + rng.normal(0, 0.1, (1, 20))
    found = paired(cells("a", mine) + cells("b", theirs), "a", "b", "fidelity")
    assert found is not None and found.better and found.p < 0.001 and found.effects == 20
    assert 0.4 < found.difference.lo < 0.5 < found.difference.hi < 0.6
    worse = paired(
        cells("a", mine, "bad_case_rate") + cells("b", theirs, "bad_case_rate"),
        "a",
        "b",
        "bad_case_rate",
    )
    assert worse is not None and not worse.better


def test_the_same_seeds_are_paired_and_others_are_not() -> None:
    rng = np.random.default_rng(5)
    # Students that differ by seed far more than what is done to each of them changes.
    before = rng.normal(20, 0.1, (3, 30)) + np.array([[-4.0], [0.0], [4.0]])
    after = before + 0.5 + rng.normal(0, 0.1, (3, 30))

    def interval(theirs: list[Cell]) -> tuple[Interval, float]:
        found = paired(cells("after", after) + theirs, "after", "before", "fidelity")
        assert found is not None and found.difference.mean == pytest.approx(0.5, abs=0.1)
        return found.difference, found.p

    same, p = interval(cells("before", before))
    assert same.hi - same.lo < 0.2 and same.lo > 0.3
    # Whatever the order in which they came.
    turned, _ = interval(sorted(cells("before", before), key=lambda c: -(c.seed or 0)))
    assert (turned.lo, turned.hi) == pytest.approx((same.lo, same.hi))
    others = [replace(c, seed=(c.seed or 0) + 7) for c in cells("before", before)]
    apart, p_apart = interval(others)
    assert apart.hi - apart.lo > 5 and p_apart == p


def test_the_sign_flip_test_against_all_flips() -> None:
    differences = np.array([0.9, 0.4, -0.2, 0.7, 0.1, 0.5, -0.3, 0.6])
    every = np.array(list(product([-1.0, 1.0], repeat=8))) @ differences
    exact = float((np.abs(every) >= differences.sum() - 1e-12).mean())
    assert sign_flip(differences, np.random.default_rng(0)) == pytest.approx(exact, abs=0.01)


def test_no_difference_is_found_in_noise_more_often_than_chance() -> None:
    rng = np.random.default_rng(2)
    found = [sign_flip(rng.normal(0, 1, 16), rng, 500) < 0.05 for _ in range(400)]
    assert np.mean(found) < 0.09


def test_seeds_with_unlike_effects_are_refused() -> None:
    some = cells("m", np.zeros((2, 3)))[:-1]
    with pytest.raises(ValueError, match="do not have the same effects"):
        matrix(some, "m", "fidelity")


def test_tables_name_every_method_and_mark_differences() -> None:
    rng = np.random.default_rng(3)
    level = rng.normal(20, 2, 12)
    some = cells("student", level[None] + 1) + cells("base", level[None] - 9)
    text = table(some, {"student": {"nfe": 4, "ms_per_image": 20.0, "bytes": 2e6}}, "student")
    student, base = text.splitlines()[2:]
    assert "| 4 " in student and "2.00" in student and "*" not in student
    assert "*" in base and "| - " in base
    assert "| base" in paired_table(some, "student") and "better" in paired_table(some, "student")


def test_five_effects_cannot_tell_and_the_table_says_so() -> None:
    level = np.array([[20.0, 21, 22, 23, 24, 25]])
    five = cells("student", level[:, :5] + 9) + cells("base", level[:, :5])
    assert "untold: 5 effects are too few" in paired_table(five, "student")
    six = cells("student", level + 9) + cells("base", level)
    assert "| better" in paired_table(six, "student")
    same = cells("student", level[:, ::-1]) + cells("base", level)
    assert "not shown to differ" in paired_table(same, "student")


def test_cells_survive_json() -> None:
    some = cells("m", np.array([[1.5, 2.25]]))
    assert from_json(to_json(some)) == some
