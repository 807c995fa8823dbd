"""The same distillation in one process, without Ray: Ray must equal it bit by bit."""

from collections import deque
from collections.abc import Callable

from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import StudentTrainer


def distill_in_one_process(
    trainer: StudentTrainer,
    worker: RolloutWorker,
    rounds: range,
    lag: int = 0,
    on_metrics: Callable[[dict[str, float]], None] | None = None,
) -> None:
    """Run rounds one after another: roll out under version ``max(0, r - lag)``, then update."""
    policies = deque([trainer.policy()], maxlen=lag + 1)
    for round_index in rounds:
        version = max(0, round_index - lag)
        worker.load_policy(policies[0])
        rollout = worker.roll(round_index, rank=0, policy_version=version)
        metrics = trainer.update(rollout, round_index, rank=0)
        policies.append(trainer.policy())
        if on_metrics is not None:
            waiting = {"forwards_teacher_pool": float(rollout.teacher_forwards.mean())}
            on_metrics(metrics | waiting | {"round": float(round_index)})
