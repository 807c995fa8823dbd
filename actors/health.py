"""What teachers and students say of themselves, and what is wrong when they fall silent.

Pure: the policy board collects the words, the driver asks it and prints what :func:`diagnose`
finds. Silence is what a stalled, a dead and a never started process have in common.
"""

from dataclasses import dataclass
from typing import Literal

# A stall is to be named within a minute: this, the beat and the driver's look add up to less.
STALL_SECONDS = 45.0
BEAT_SECONDS = 2.0
# Reading a base of 41 GB from a slow disk is not a stall.
LOAD_SECONDS = 900.0
USUAL_FACTOR = 3.0

Doing = Literal["loading", "waiting", "working", "done"]


@dataclass(frozen=True)
class Word:
    """What a process says: who and where it is, and what it does in which round.

    actor: Ray's id of it; where: for a person; busy, wall: of the round just done, the seconds of
    work and the seconds since the one before; memory: GiB of GPU memory at most, 0 without one.
    """

    actor: str
    where: str
    doing: Doing
    round: int = 0
    rank: int = 0
    busy: float = 0.0
    wall: float = 0.0
    memory: float = 0.0


@dataclass(frozen=True)
class Heard:
    """A word, how long it has stood (seconds), and how long ago there was any sign of life."""

    word: Word
    since: float
    silent: float


@dataclass(frozen=True)
class Health:
    """All that the board knows. usual_*: median seconds of a rollout and an update, 0 if none."""

    age: float
    student: Heard | None
    teachers: tuple[Heard, ...]
    usual_rollout: float
    usual_update: float


@dataclass(frozen=True)
class Alarm:
    """Something that stands still: what, and what to do. ``about`` tells alarms apart."""

    about: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}. Remedy: {self.remedy}"


def diagnose(health: Health, stall: float = STALL_SECONDS) -> list[Alarm]:
    """What stands still. ``stall``: seconds of patience, or three times the usual if longer."""
    student = health.student
    if student is None:
        return (
            [_not_begun("student worker", "student_group", health.age)]
            if health.age > stall
            else []
        )
    if student.silent > stall:
        what = f"the student worker ({student.word.where}) is silent for {student.silent:.0f} s"
        remedy = (
            "look at that node; if the process hangs, kill -9 it: Ray Train starts the group "
            "again from the last checkpoint"
        )
        return [Alarm("student silent", what, remedy)]
    alarms = []
    doing, at = student.word.doing, student.word.round
    if doing == "loading" and student.since > LOAD_SECONDS:
        what = f"the student worker ({student.word.where}) is loading for {student.since:.0f} s"
        alarms.append(Alarm("student loading", what, "look at that node's disk and memory"))
    if doing == "working" and student.since > _patience(stall, health.usual_update):
        what = (
            f"the student ({student.word.where}) is in the update of round {at} for "
            f"{student.since:.0f} s (usually {health.usual_update:.1f} s)"
        )
        remedy = (
            "look at the nodes of all student workers: one that is stuck holds up the others; "
            "kill -9 it, and Ray Train starts the group again from the last checkpoint"
        )
        alarms.append(Alarm("student update", what, remedy))
    if doing != "waiting":
        return alarms
    patience = _patience(stall, health.usual_rollout)
    if not health.teachers:
        if student.since > stall:
            alarms.append(_not_begun("teacher", "teacher_pool", student.since))
        return alarms
    # What a teacher does in a round that has been consumed was done by another in its place.
    owing = [t for t in health.teachers if t.word.doing == "working" and t.word.round >= at]
    for teacher in owing:
        if teacher.since > patience:
            what = (
                f"teacher {teacher.word.where} gave no rollout for {teacher.since:.0f} s (round "
                f"{teacher.word.round}; usually {health.usual_rollout:.1f} s): stalled or dead"
            )
            remedy = (
                "look at that node; kill -9 the process if it hangs: Ray makes a new one, and its "
                "round is done again. If there is no such node any more, the cluster lacks one"
            )
            alarms.append(Alarm(f"teacher {teacher.word.actor}", what, remedy))
    loading = [t for t in health.teachers if t.word.doing == "loading" and t.since < LOAD_SECONDS]
    if not owing and not loading and student.since > patience:
        what = f"no teacher makes the rollout of round {at}, for {student.since:.0f} s"
        remedy = (
            "the pool has lost its actors: see `ray status` for what they ask (recipe: "
            "cluster.teacher_pool) and what nodes offer; if that fits, start the recipe again"
        )
        alarms.append(Alarm("no rollout", what, remedy))
    return alarms


def _patience(stall: float, usual: float) -> float:
    return max(stall, USUAL_FACTOR * usual)


def _not_begun(what: str, section: str, seconds: float) -> Alarm:
    return Alarm(
        f"no {what}",
        f"no {what} has begun for {seconds:.0f} s: the cluster has no room for it, or is slow",
        f"compare `ray status` with what the recipe's cluster.{section} asks for; add nodes or "
        "ask for less",
    )
