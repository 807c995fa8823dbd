"""What a lesson's task tells of itself."""

from io import StringIO
from types import SimpleNamespace

import pytest
from tqdm import tqdm

from actors import lesson_board
from actors.lesson_board import SAY_SECONDS, LessonStatus, speaker
from pipeline.stages.teach import pass_over


def test_it_tells_at_once_and_then_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(lesson_board, "time", SimpleNamespace(monotonic=lambda: now))
    heard: list[tuple[str, LessonStatus]] = []
    say = SimpleNamespace(remote=lambda lesson, status: heard.append((lesson, status)))
    tell = speaker(SimpleNamespace(say=say), "snow")
    for step in range(30):
        tell(step, 1 / (step + 1))
        now += SAY_SECONDS / 10
    assert heard == [("snow", LessonStatus(n, 1 / n, 0)) for n in (1, 11, 21)]


def test_it_says_with_how_many_steps_a_task_began() -> None:
    heard: list[LessonStatus] = []
    say = SimpleNamespace(remote=lambda lesson, status: heard.append(status))
    speaker(SimpleNamespace(say=say), "snow")(180, 0.5)
    assert heard == [LessonStatus(181, 0.5, 180)]


def test_a_bars_rate_is_that_of_the_steps_of_this_run() -> None:
    bar = tqdm(total=400, file=StringIO(), mininterval=0)
    pass_over(bar, 180)
    bar.start_t -= 10
    bar.last_print_t -= 10
    bar.update(20)
    assert bar.n == 200
    assert bar.format_dict["initial"] == 180
    assert bar.format_dict["rate"] == pytest.approx(2, rel=0.05)
