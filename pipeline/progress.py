"""Where a run stands, in its own output folder: so that anybody who can read it can tell.

``progress.json`` says the recipe, the stage and how much of it there was to do; rewritten every
few seconds, it is also the run's sign of life. All else (rounds, losses, rates) is in what the
stages themselves write. ``pipeline.status`` reads it.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pipeline import mirror
from pipeline.config import Recipe, recipe_hash
from pipeline.places import Places
from pipeline.problems import StorageError
from pipeline.storage import write_atomic
from pipeline.tensor_store import count_rows

FILE = "progress.json"
BEAT_SECONDS = 15.0
# (stage, how much of it there is, how much of that was there before)
OnStage = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Progress:
    """A run's own word on itself.

    state: running, finished or failed; total, ready: what the stage is of, and what of it was
    there when it began; stored: what its store then held in all (other recipes' included), so that
    what has come since can be counted; times are seconds of the epoch; run_key: whose rounds of
    the output's history are its own, as soon as that is known.
    """

    recipe: dict[str, Any]
    recipe_hash: str
    host: str
    pid: int
    state: str
    stage: str
    total: int
    ready: int
    stored: int
    stage_began: float
    alive: float
    error: str = ""
    run_key: str = ""


def ignore(stage: str, total: int, ready: int) -> None:
    """For who does not want to know."""


def progress_file(places: Places) -> Path:
    """Where a run's word on itself is."""
    return places.output / FILE


def read_progress(places: Places) -> Progress | None:
    """The last word of a run, or None where there is none (or one of another version).

    Raises StorageError where the object store of an output in S3 fails.
    """
    file = progress_file(places)
    mirror.fetch(file)
    try:
        return Progress(**json.loads(file.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def stored(stage: str, places: Places) -> int:
    """How much a stage's store holds, whoever put it there."""
    if stage == "encode":
        return count_rows(places.encodings)
    if stage == "targets":
        return count_rows(places.targets)
    if stage == "teach":
        return sum(name.endswith(".safetensors") for name in mirror.names(places.teachers))
    if stage == "evaluate":
        # Each picture has its cost beside it.
        return count_rows(places.evaluation / "pictures") // 2
    return 0


class Reporter:
    """Keeps ``progress.json`` up to date for the length of a ``with`` block."""

    def __init__(self, recipe: Recipe, places: Places, beat: float = BEAT_SECONDS) -> None:
        self._places, self._beat = places, beat
        now = time.time()
        self._last = Progress(
            recipe=recipe.model_dump(mode="json"),
            recipe_hash=recipe_hash(recipe),
            host=socket.gethostname(),
            pid=os.getpid(),
            state="running",
            stage="prompts",
            total=0,
            ready=0,
            stored=0,
            stage_began=now,
            alive=now,
        )
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beating, daemon=True)

    def stage(self, stage: str, total: int, ready: int) -> None:
        """A stage begins: ``ready`` of ``total`` are there already."""
        held, now = stored(stage, self._places), time.time()
        self._write(stage=stage, total=total, ready=ready, stored=held, stage_began=now)

    def distils(self, run_key: str) -> None:
        """The run knows its name: which rounds and checkpoints of its output are its own."""
        self._write(run_key=run_key)

    def __enter__(self) -> Self:
        self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None:
            self._write(state="finished")
        else:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            self._write(state="failed", error=said)

    def _beating(self) -> None:
        while not self._stop.wait(self._beat):
            self._write()

    def _write(self, **changes: Any) -> None:
        with self._lock:
            self._last = replace(self._last, alive=time.time(), **changes)
            text = json.dumps(asdict(self._last), indent=1)
            try:
                write_atomic(progress_file(self._places), text.encode())
            except (OSError, StorageError) as error:
                # The stages write to the same place, and say what to do where they cannot.
                print(f"warning: {progress_file(self._places)}: {error}", flush=True)
