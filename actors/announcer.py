"""A process's voice: who it is, and the student's side of the policy board."""

import os
import secrets
import socket
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import ray
import torch
from torch import Tensor

from actors.health import BEAT_SECONDS, Doing, Word

# What the board may have lost when it died, at most: the driver looks each second.
_ROWS = 64


def first_word() -> Word:
    """This process's word while it loads."""
    context = ray.get_runtime_context()
    where = f"process {os.getpid()} on {socket.gethostname()}, node {context.get_node_id()[:8]}"
    return Word(context.get_actor_id() or "", where, "loading")


def gpu_memory() -> float:
    """GiB that this process took on its GPU at most; 0 without one."""
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


class Announcer:
    """Rank 0's voice: weights and metrics to the board, all of it again with every beat.

    It holds the references to the weights that teachers may still ask for, so that a board which
    died, and teachers that wait for a new one, have them again after one beat.
    """

    def __init__(self, board: Any, keep: int) -> None:
        self._board, self._keep = board, keep
        self._attempt, self._word = secrets.token_hex(6), first_word()
        self._policies: dict[int, list[Any]] = {}
        self._rows: deque[dict[str, float]] = deque(maxlen=_ROWS)
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beating, daemon=True)

    def __enter__(self) -> Self:
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

    def publish(self, policies: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Put weights, by version, in the object store, and tell the board."""
        new = {
            version: [ray.put({k: v.numpy() for k, v in policy.items()})]
            for version, policy in policies.items()
        }
        with self._lock:
            self._policies |= new
            for old in sorted(self._policies)[: -self._keep]:
                del self._policies[old]
        ray.get(self._board.offer.remote(self._attempt, self._word, new, []))

    def record(self, row: dict[str, float]) -> None:
        """Metrics of a finished round, ``round`` among them.

        With those before it: an async actor's calls overtake each other, and the driver takes a
        row that comes after a later one for a row that it knows.
        """
        self._rows.append(row)
        self._board.offer.remote(self._attempt, self._word, {}, list(self._rows))

    def show(self, rounds: int, preview: bytes) -> None:
        """A preview (PNG) of the student after so many rounds."""
        self._board.show.remote(rounds, preview)

    def doing(self, what: Doing, round_index: int) -> None:
        """What the student does now, and in which round; the board hears it with the next beat."""
        self._word = replace(self._word, doing=what, round=round_index)

    def _beating(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with self._lock:
                said = self._word, dict(self._policies), list(self._rows)
            ray.get(self._board.offer.remote(self._attempt, *said))
