"""The driver's eye on a run: hands on metrics and previews, and says what stands still."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from tqdm import tqdm

from actors.health import STALL_SECONDS, Alarm, diagnose
from actors.policy_board import Look
from pipeline.problems import StorageError

OnMetrics = Callable[[dict[str, float]], None]
# A preview (PNG) of the student after so many rounds.
OnPreview = Callable[[int, bytes], None]
OnAlarm = Callable[[str], None]

_LOOK_SECONDS, _ANSWER_SECONDS = 1.0, 10.0
_AGAIN_SECONDS = 300.0


def say(text: str) -> None:
    """To the log, between the progress bar's lines."""
    tqdm.write(f"warning: {text}", file=sys.stderr)
    sys.stderr.flush()


class Alarms:
    """Says each alarm when it comes, again every five minutes, and when it is over."""

    def __init__(self, say: OnAlarm = say) -> None:
        self._say = say
        self._said: dict[str, float] = {}

    def update(self, alarms: list[Alarm], now: float) -> None:
        """The alarms of this moment."""
        for about in set(self._said) - {alarm.about for alarm in alarms}:
            self._say(f"over: {about}")
            del self._said[about]
        for alarm in alarms:
            if now - self._said.get(alarm.about, float("-inf")) >= _AGAIN_SECONDS:
                self._say(str(alarm))
                self._said[alarm.about] = now


class Watchdog:
    """Looks at the policy board; one look after another, from one thread at a time."""

    def __init__(
        self, board: Any, on_metrics: OnMetrics, on_preview: OnPreview, say: OnAlarm = say
    ) -> None:
        self._board, self._alarms = board, Alarms(say)
        self._on_metrics, self._on_preview = on_metrics, on_preview
        self._life, self._count, self._answered = "", 0, time.monotonic()
        self._handed = -1.0

    def look(self) -> None:
        """Hand on new metrics; say what stands still, an unreachable board included."""
        now = time.monotonic()
        try:
            look: Look = ray.get(
                self._board.look.remote(self._life, self._count), timeout=_ANSWER_SECONDS
            )
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError) as error:
            silent = now - self._answered
            if silent + _ANSWER_SECONDS > STALL_SECONDS:
                self._alarms.update([_board_is_gone(silent, error)], now)
            return
        self._answered = now
        same = look.life == self._life
        if not same:
            self._life, self._count = look.life, 0
        for row in look.rows:
            # A board born again hears rows that the one before it handed on.
            if same or row["round"] > self._handed:
                self._on_metrics(row)
                self._handed = row["round"]
            # One by one: what a full disk refused comes again with the next look.
            self._count += 1
        for preview in look.previews:
            self._on_preview(*preview)
        self._alarms.update(diagnose(look.health), now)


def _board_is_gone(silent: float, error: Exception) -> Alarm:
    return Alarm(
        "policy board",
        f"the policy board does not answer for {silent:.0f} s ({type(error).__name__})",
        "it runs on the driver's node, where Ray starts it again by itself: look at that node's "
        "memory; if it stays away, start the recipe again: it goes on from the last checkpoint",
    )


@contextmanager
def watched(board: Any, on_metrics: OnMetrics, on_preview: OnPreview) -> Iterator[None]:
    """Watch while the block runs, and hand on the rest after it; ends the board.

    Raises:
        StorageError: what came last could not be written.
    """
    stop = threading.Event()
    watchdog = Watchdog(board, on_metrics, on_preview)

    def watch() -> None:
        full: str | None = None
        while not stop.wait(_LOOK_SECONDS):
            try:
                watchdog.look()
                full = None
            except StorageError as error:
                # Ray Train will find out with its next checkpoint; until then there may be space.
                if str(error) != full:
                    full = str(error)
                    say(full)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
        time.sleep(0.2)
    finally:
        stop.set()
        watcher.join()
        try:
            watchdog.look()
        finally:
            ray.kill(board)
