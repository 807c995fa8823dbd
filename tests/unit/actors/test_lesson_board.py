"""What a lesson's task tells of itself."""

from types import SimpleNamespace

import pytest

from actors import lesson_board
from actors.lesson_board import SAY_SECONDS, LessonStatus, speaker


def test_it_tells_at_once_and_then_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(lesson_board, "time", SimpleNamespace(monotonic=lambda: now))
    heard: list[tuple[str, LessonStatus]] = []
    say = SimpleNamespace(remote=lambda lesson, status: heard.append((lesson, status)))
    tell = speaker(SimpleNamespace(say=say), "snow")
    for step in range(30):
        tell(step, 1 / (step + 1))
        now += SAY_SECONDS / 10
    assert heard == [("snow", LessonStatus(n, 1 / n)) for n in (1, 11, 21)]
