"""Alarms: each sign alone, once, again after it was gone, and never in a steady run."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distill.alarms import Alarms
from pipeline.distill.names import SCORE
from pipeline.distill.watch import best_of

FINE = {"loss_fake": 0.1, "range/outside": 0.001, "validation/contrast": 1.0}


def kinds(rows: list[dict[str, float]], patience: int = 2) -> list[tuple[int, str]]:
    alarms = Alarms(patience, 0.05)
    heard = [alarms.hear(FINE | {"round": r} | row) for r, row in enumerate(rows)]
    return [(alarm.round, alarm.kind) for each in heard for alarm in each]


@given(
    st.lists(st.floats(0.97, 1.0), min_size=3, max_size=30),
    st.lists(st.floats(0.05, 0.15), min_size=60, max_size=80),
)
def test_steady_runs_are_silent(scores: list[float], losses: list[float]) -> None:
    assert kinds([{SCORE: score} for score in scores]) == []
    assert kinds([{"loss_fake": loss} for loss in losses]) == []


def test_collapse_needs_patience_and_names_the_best() -> None:
    def looks(*scores: float) -> list[tuple[int, str]]:
        return kinds([{SCORE: score} for score in scores])

    assert looks(1.0, 0.5, 0.6) == []
    assert looks(1.0, 0.5, 0.6, 0.52, 0.6) == []
    assert looks(1.0, 0.5, 0.6, 0.6) == [(3, "collapse")]
    assert looks(1.0, 0.5, 0.6, 0.6, 0.7, 0.8) == [(3, "collapse")]
    # It recovers, and collapses again.
    again = looks(1.0, 0.5, 0.6, 0.6, 0.4, 0.6, 0.6)
    assert again == [(3, "collapse"), (6, "collapse")]


def test_no_number_is_a_collapse_and_never_the_best() -> None:
    found = kinds([{SCORE: v} for v in (1.0, 0.5, math.nan, math.nan)])
    assert (2, "not finite") in found and (3, "collapse") in found
    assert best_of({1: math.nan, 2: 3.0, 3: 2.0, 4: 2.0}) == 3


def test_range_is_judged_over_rounds_not_one() -> None:
    once = [{"range/outside": 0.1 if r == 7 else 0.0} for r in range(20)]
    assert kinds(once) == []
    stays = [{"range/outside": 0.2 if r >= 7 else 0.0} for r in range(20)]
    assert kinds(stays) == [(7, "out of range")]


def test_a_fake_score_that_no_longer_follows() -> None:
    spike = [{"loss_fake": 0.5 if r >= 70 else 0.08} for r in range(90)]
    ((when, kind),) = kinds(spike)
    assert kind == "fake score behind" and 70 < when < 75


@pytest.mark.parametrize(("contrast", "word"), [(0.4, "faded"), (2.0, "oversaturated")])
def test_contrast(contrast: float, word: str) -> None:
    (alarm,) = Alarms(2, 0.05).hear(
        FINE | {"round": 3, SCORE: 1.0, "validation/contrast": contrast}
    )
    assert alarm.kind == "saturation" and alarm.text.startswith(word)


def test_every_alarm_says_what_to_do() -> None:
    alarms = Alarms(1, 0.05)
    rows = [FINE | {"round": r, "loss_fake": 0.08} for r in range(70)]
    rows += [FINE | {"round": 70, SCORE: 1.0}]
    bad = {"loss_fake": 9.0, "range/outside": 1.0, "validation/contrast": 9.0, "x": math.nan}
    rows += [FINE | bad | {"round": 71 + r, SCORE: 2.0} for r in range(5)]
    heard = {alarm.kind: alarm.text for row in rows for alarm in alarms.hear(row)}
    kinds = {"not finite", "out of range", "fake score behind", "collapse", "saturation"}
    assert set(heard) == kinds
    assert all("distill." in text for text in heard.values())
