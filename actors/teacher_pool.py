"""The teacher pool: Ray Data actors that roll the student out and score it by its teachers."""

import time
from dataclasses import replace
from typing import Any

import ray
import ray.exceptions
import torch

from actors.announcer import first_word, gpu_memory
from actors.arguments import TeacherPoolArguments
from actors.health import Doing
from pipeline.types import Rollout


class TeacherActor:
    """``map_batches`` class: one row ``{round, rank}`` in, one block of rollout rows out."""

    def __init__(self, arguments: TeacherPoolArguments) -> None:
        # Here, and not above: Ray's own processes read this module for the class alone.
        from actors.rollout_worker import rollout_worker

        self.arguments = arguments
        self.board = ray.get_actor(arguments.board, namespace=arguments.namespace)
        self.word = first_word()
        self.board.heard.remote(self.word)
        self.worker = rollout_worker(arguments)
        self.loaded = -1
        self.ended = time.monotonic()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (round_index,), (rank,) = batch["round"].tolist(), batch["rank"].tolist()
        version = max(0, round_index - self.arguments.lag)
        self.word = replace(self.word, round=round_index, rank=rank)
        if version != self.loaded:
            self._say("waiting")
            weights = self._policy(version)
            self.worker.load_policy({k: torch.from_numpy(v) for k, v in weights.items()})
            self.loaded = version
        self._say("working")
        began = time.monotonic()
        rollout: Rollout = self.worker.roll(round_index, rank, version)
        ended = time.monotonic()
        self._say("done", ended - began, ended - self.ended)
        self.ended = ended
        return rollout.columns()

    def _say(self, doing: Doing, busy: float = 0.0, wall: float = 0.0) -> None:
        word = replace(self.word, doing=doing, busy=busy, wall=wall, memory=gpu_memory())
        self.board.heard.remote(word)

    def _policy(self, version: int) -> dict[str, Any]:
        """A version's weights; asked for again where the student that had them died."""
        while True:
            (policy,) = ray.get(self.board.policy.remote(version))
            try:
                weights: dict[str, Any] = ray.get(policy)
                return weights
            except ray.exceptions.ObjectLostError:
                time.sleep(1)
