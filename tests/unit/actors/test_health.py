"""What stands still is named, once, with what to do; what is only slow is not."""

from dataclasses import replace

import pytest

from actors.health import LOAD_SECONDS, STALL_SECONDS, Doing, Health, Heard, Word, diagnose
from actors.watchdog import Alarms


def heard(doing: Doing, round_index: int, since: float, silent: float = 0.0) -> Heard:
    return Heard(Word("a1", "process 7 on node x", doing, round_index), since, silent)


GOOD = Health(
    age=500.0,
    student=heard("waiting", 10, 1.0),
    teachers=(heard("working", 10, 1.0), heard("done", 9, 1.0)),
    usual_rollout=1.0,
    usual_update=1.0,
)


def abouts(health: Health) -> list[str]:
    return [alarm.about for alarm in diagnose(health)]


def test_a_run_at_work_raises_no_alarm() -> None:
    assert abouts(GOOD) == []
    assert abouts(replace(GOOD, student=None, age=STALL_SECONDS - 1)) == []


def test_a_stalled_teacher_is_named_with_its_place_and_a_remedy() -> None:
    late = replace(
        GOOD,
        student=heard("waiting", 10, STALL_SECONDS + 1),
        teachers=(heard("working", 10, STALL_SECONDS + 1),),
    )
    (alarm,) = diagnose(late)
    assert alarm.about == "teacher a1"
    assert "process 7 on node x" in str(alarm) and "kill -9" in str(alarm)


@pytest.mark.parametrize("usual", [0.0, 20.0])
def test_patience_grows_with_what_is_usual(usual: float) -> None:
    """Three rollouts' time, where a rollout takes long: 45 s or 60 s."""
    patience = max(STALL_SECONDS, 3 * usual)
    for seconds, alarms in ((patience - 1, []), (patience + 1, ["teacher a1"])):
        slow = replace(
            GOOD,
            student=heard("waiting", 10, seconds),
            teachers=(heard("working", 10, seconds),),
            usual_rollout=usual,
        )
        assert abouts(slow) == alarms


def test_a_dead_teacher_whose_round_another_did_is_no_alarm() -> None:
    moved_on = replace(GOOD, teachers=(heard("working", 4, 400.0), heard("working", 10, 1.0)))
    assert abouts(moved_on) == []


def test_silence_lack_of_room_and_long_updates_are_told_apart() -> None:
    late = STALL_SECONDS + 1
    waiting = heard("waiting", 10, late)
    assert abouts(replace(GOOD, student=None)) == ["no student worker"]
    assert abouts(replace(GOOD, student=heard("working", 10, 1.0, silent=late))) == [
        "student silent"
    ]
    assert abouts(replace(GOOD, student=heard("working", 10, late))) == ["student update"]
    assert abouts(replace(GOOD, student=waiting, teachers=())) == ["no teacher"]
    assert abouts(replace(GOOD, student=waiting, teachers=(heard("done", 9, late),))) == [
        "no rollout"
    ]


def test_loading_has_patience_of_its_own() -> None:
    loading = heard("loading", 0, LOAD_SECONDS - 1)
    waiting = heard("waiting", 0, LOAD_SECONDS - 1)
    assert abouts(replace(GOOD, student=waiting, teachers=(loading,))) == []
    assert abouts(replace(GOOD, student=loading)) == []
    late = heard("loading", 0, LOAD_SECONDS + 1)
    assert abouts(replace(GOOD, student=late)) == ["student loading"]


def test_an_alarm_is_said_once_again_after_minutes_and_when_over() -> None:
    said: list[str] = []
    alarms = Alarms(said.append)
    found = diagnose(replace(GOOD, student=None))
    for now in (0.0, 1.0, 299.0):
        alarms.update(found, now)
    assert len(said) == 1
    alarms.update(found, 301.0)
    assert len(said) == 2
    alarms.update([], 302.0)
    assert said[2:] == ["over: no student worker"]
    alarms.update([], 303.0)
    assert len(said) == 3
