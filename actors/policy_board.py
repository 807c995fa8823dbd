"""The policy board: which student weights exist, and how everybody is.

A named async actor on the driver's node. The student group publishes; the teacher pool waits for
the exact version of its round; the driver looks. Ray starts it again when it dies, empty: the
student tells everything again with its next beat, so nothing is lost but seconds.
"""

import asyncio
import secrets
import time
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import Any

import ray

from actors.gauges import Gauges
from actors.health import Health, Heard, Word

_RECENT = 32
# A picture (PNG) of the student after so many rounds.
Preview = tuple[int, bytes]


@dataclass
class _Spoken:
    word: Word
    since: float
    heard: float

    def heard_by(self, now: float) -> Heard:
        return Heard(self.word, now - self.since, now - self.heard)


@dataclass(frozen=True)
class Look:
    """What the driver sees: rows of finished rounds after those it has, by one life of the board.

    life: which one; its rows are numbered from 0.
    """

    life: str
    rows: list[dict[str, float]]
    health: Health
    previews: list[Preview]


@ray.remote(num_cpus=0, max_concurrency=1000, max_restarts=-1, max_task_retries=-1)
class PolicyBoard:
    """Versions of the student's weights, metrics of finished rounds, words of all."""

    def __init__(self, keep: int, run: str) -> None:
        self._keep, self._life, self._born = keep, secrets.token_hex(4), time.monotonic()
        self._policies: dict[int, Any] = {}
        self._changed = asyncio.Condition()
        self._rows: list[dict[str, float]] = []
        self._previews: list[Preview] = []
        self._attempts: list[str] = []
        self._seen: set[int] = set()
        self._student: _Spoken | None = None
        self._teachers: dict[str, _Spoken] = {}
        self._rolled: set[tuple[int, int]] = set()
        self._rollouts: deque[Word] = deque(maxlen=_RECENT)
        self._gauges = Gauges(run)

    async def offer(
        self,
        attempt: str,
        word: Word,
        policies: dict[int, list[Any]],
        rows: list[dict[str, float]],
    ) -> None:
        """All that a student has to say; saying it twice does no harm.

        attempt: which start of the student group; policies: by version, a list that wraps the
        reference; rows: metrics of finished rounds, ``round`` among them.
        """
        async with self._changed:
            if attempt not in self._attempts:
                # The weights of the group before died with it; its rounds come again.
                self._attempts.append(attempt)
                self._policies.clear()
                self._seen.clear()
                self._rolled.clear()
            elif attempt != self._attempts[-1]:
                return
            self._student = _said(self._student, word)
            self._policies |= {version: policy[0] for version, policy in policies.items()}
            latest = max(self._policies, default=0)
            for old in [v for v in self._policies if v < latest - self._keep]:
                del self._policies[old]
            for row in rows:
                if int(row["round"]) not in self._seen:
                    self._seen.add(int(row["round"]))
                    self._record(row)
            self._changed.notify_all()

    async def policy(self, version: int) -> list[Any]:
        """The (wrapped) reference to a version's weights; waits until it is published."""
        async with self._changed:
            await self._changed.wait_for(lambda: version in self._policies)
            return [self._policies[version]]

    async def heard(self, word: Word) -> None:
        """A teacher's word."""
        self._teachers[word.actor] = _said(self._teachers.get(word.actor), word)
        if word.doing == "done":
            self._rolled.add((word.round, word.rank))
            self._rollouts.append(word)

    async def show(self, rounds: int, preview: bytes) -> None:
        """A preview (PNG) of the student after so many rounds; a board that dies loses it."""
        self._previews.append((rounds, preview))

    async def look(self, life: str, count: int) -> Look:
        """Rows after the first ``count`` (all, if the board has been born again), and health.

        Previews since the last look come with it.
        """
        now = time.monotonic()
        rows = self._rows[count:] if life == self._life else list(self._rows)
        usual = [row["seconds_update"] for row in self._rows[-_RECENT:]]
        health = Health(
            age=now - self._born,
            student=self._student.heard_by(now) if self._student else None,
            teachers=tuple(t.heard_by(now) for t in self._teachers.values()),
            usual_rollout=median([word.busy for word in self._rollouts] or [0.0]),
            usual_update=median(usual or [0.0]),
        )
        previews, self._previews = self._previews, []
        return Look(self._life, rows, health, previews)

    def _record(self, row: dict[str, float]) -> None:
        """Add a finished round, with what only the board knows of it."""
        self._rolled = {(r, rank) for r, rank in self._rolled if r > row["round"]}
        recent = [*self._rows[-_RECENT:], row]
        wait = sum(r["seconds_wait"] for r in recent)
        whole = wait + sum(r["seconds_update"] for r in recent)
        wall = sum(word.wall for word in self._rollouts)
        extra = {
            "rounds_per_second": len(recent) / max(whole, 1e-9),
            "student_wait_share": wait / max(whole, 1e-9),
            "teacher_busy_share": sum(w.busy for w in self._rollouts) / wall if wall else 0.0,
            "queue": float(len(self._rolled)),
        }
        if memory := max((word.memory for word in self._rollouts), default=0.0):
            extra["gpu_memory_teacher"] = memory
        self._rows.append(row | extra)
        self._gauges.show(row | extra)


def _said(before: _Spoken | None, word: Word) -> _Spoken:
    """A word's time is that of its first saying: a beat repeats it."""
    now = time.monotonic()
    same = before is not None and before.word == word
    return _Spoken(word, before.since if same and before else now, now)
