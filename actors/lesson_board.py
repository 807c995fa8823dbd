"""How far the lessons are that are being taught: their tasks say it, the driver shows it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

SAY_SECONDS = 1.0


@dataclass(frozen=True)
class LessonStatus:
    """Steps done, the last one's loss, and how many were there already when its task began."""

    steps: int
    loss: float
    begun: int


@ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)
class LessonBoard:
    """The last word of each lesson. Started again it is empty, until they speak next."""

    def __init__(self) -> None:
        self._last: dict[str, LessonStatus] = {}

    def say(self, lesson: str, status: LessonStatus) -> None:
        """How far a lesson is; further back than before if its task had to begin again."""
        self._last[lesson] = status

    def look(self) -> dict[str, LessonStatus]:
        """All of them, by name."""
        return self._last


def speaker(board: Any, lesson: str) -> Callable[[int, float], None]:
    """For ``teach``'s steps: tells the board once a second, and waits for nothing."""
    due = 0.0
    begun: int | None = None

    def say(step: int, loss: float) -> None:
        nonlocal due, begun
        begun = step if begun is None else begun
        if (now := time.monotonic()) >= due:
            due = now + SAY_SECONDS
            board.say.remote(lesson, LessonStatus(step + 1, loss, begun))

    return say
