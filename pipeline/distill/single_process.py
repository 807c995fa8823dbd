"""The same distillation in one process, without Ray: Ray must equal it bit by bit."""

from collections import deque
from collections.abc import Callable

import numpy as np

from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import StudentTrainer


def distill_in_one_process(
    trainer: StudentTrainer,
    worker: RolloutWorker,
    rounds: range,
    lag: int = 0,
    on_metrics: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Run rounds one after another: roll out under version ``max(0, r - lag)``, then update.

    All logical ranks of a round are this process's, as they are an elastic group's last worker's.
    """
    ranks = range(trainer.dealing.ranks)
    policies = deque([trainer.policy()], maxlen=lag + 1)
    for round_index in rounds:
        version = max(0, round_index - lag)
        worker.load_policy(policies[0])
        rollouts = [worker.roll(round_index, rank, version) for rank in ranks]
        metrics = trainer.update_hand(rollouts, round_index, ranks)
        policies.append(trainer.policy())
        if on_metrics is not None:
            cost = float(np.mean([rollout.teacher_forwards for rollout in rollouts]))
            on_metrics(metrics | {"forwards_teacher_pool": cost} | {"round": float(round_index)})
