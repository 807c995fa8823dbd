"""A student group in one process: a thread with a whole trainer for each worker.

Gradients are averaged by hand: the reference for groups of other sizes, sharded ones too.
"""

import threading
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from pipeline.distill.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.distill.dealing import Dealing
from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import StudentTrainer
from pipeline.distill.update_settings import UpdateSettings
from pipeline.plan import PlanSettings
from tests.unit.distill.halves import HASH, PLAN, Collection

Metrics = list[dict[str, float]]


def go_on(worker: RolloutWorker, trainer: StudentTrainer, index: int, rounds: range) -> Metrics:
    """What worker ``index`` of a group does at lag 0, with a teacher of its own."""
    metrics = []
    for r in rounds:
        worker.load_policy(trainer.policy())
        ranks = trainer.dealing.owned(r, index)
        rollouts = [worker.roll(r, rank, r) for rank in ranks]
        metrics.append(trainer.update_hand(rollouts, r, ranks))
    return metrics


class Group:
    """As many threads as the dealing has workers; each worker's metrics are kept."""

    def __init__(
        self,
        collection: Collection,
        dealing: Dealing,
        settings: UpdateSettings,
        checkpoint: Path | None = None,
        plan: PlanSettings = PLAN,
    ) -> None:
        count = dealing.workers
        self._barrier = threading.Barrier(count)
        self._given: list[list[Tensor]] = [[] for _ in range(count)]
        # Not in the threads: random weights come from torch's one generator.
        self.workers = [collection.worker(plan) for _ in range(count)]
        self.trainers = [
            collection.trainer(plan, settings, self._mean(index)) for index in range(count)
        ]
        for trainer in self.trainers:
            trainer.dealing = dealing
            if checkpoint is not None:
                load_checkpoint(checkpoint, trainer, HASH)

    def _mean(self, index: int) -> Callable[[Sequence[Tensor]], None]:
        def all_reduce(gradients: Sequence[Tensor]) -> None:
            self._given[index] = [g.clone() for g in gradients]
            self._barrier.wait(60)
            count = len(self._given)
            means = [reduce(torch.add, each) / count for each in zip(*self._given, strict=True)]
            self._barrier.wait(60)
            for gradient, mean in zip(gradients, means, strict=True):
                gradient.copy_(mean)

        return all_reduce

    def go_on(self, rounds: range) -> list[Metrics]:
        """Each worker's metrics."""
        done: list[Metrics] = [[] for _ in self.trainers]

        def run(index: int) -> None:
            done[index] = go_on(self.workers[index], self.trainers[index], index, rounds)

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(done))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert all(len(metrics) == len(rounds) for metrics in done)
        return done

    def save(self, folder: Path, round_index: int) -> None:
        trainer = self.trainers[0]
        save_checkpoint(folder, trainer, Progress(round_index, HASH, [trainer.policy()]))
