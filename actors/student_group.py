"""Tie the teacher pool to the student group: a Ray Data stream into a Ray Train worker group."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions
from ray.train import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.policy_board import PolicyBoard
from actors.run_place import RunPlace
from actors.student_worker import StudentArguments, train_loop
from actors.teacher_pool import TeacherActor, TeacherPoolArguments
from pipeline.config import PoolSettings, StudentGroupSettings
from pipeline.distill.watch import SCORE

OnMetrics = Callable[[dict[str, float]], None]
# A preview (PNG) of the student after so many rounds.
OnPreview = Callable[[int, bytes], None]


def rollout_stream(
    arguments: TeacherPoolArguments, pool: PoolSettings, place: RunPlace, rounds: int, workers: int
) -> Dataset:
    """The stream of rollout blocks from the checkpointed round on, in (round, rank) order."""
    rows = [
        {"round": r, "rank": rank}
        for r in range(place.checkpointed_round(), rounds)
        for rank in range(workers)
    ]
    return ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map_batches(
        TeacherActor,
        fn_constructor_kwargs={"arguments": arguments},
        batch_size=None,
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        resources=pool.resources,
    )


def run_student_group(
    student: StudentArguments,
    teachers: TeacherPoolArguments,
    pool: PoolSettings,
    group: StudentGroupSettings,
    place: RunPlace,
    on_metrics: OnMetrics,
    on_preview: OnPreview = lambda rounds, preview: None,
    keep_best: bool = False,
) -> Path:
    """Run (or resume) the distillation to its last round; returns a checkpoint's student folder.

    The last one, or with ``keep_best`` that with the least validation score.

    Each worker group that Ray Train starts gets a new stream that begins at the checkpointed
    round. Blocks keep their order, so each rank gets its own block of every round.
    """
    place.heal()
    # Asking for nothing, the board could land on a preemptible node, or on one that counts as idle.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = PolicyBoard.options(  # type: ignore[attr-defined]
        name=student.board, namespace=student.namespace, scheduling_strategy=here
    ).remote(keep=student.lag + 2)
    options = ExecutionOptions(preserve_order=True)
    rounds, workers = student.settings.rounds, group.workers
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"arguments": student},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=group.num_gpus > 0,
            resources_per_worker={"CPU": group.num_cpus}
            | ({"GPU": group.num_gpus} if group.num_gpus else {})
            | group.resources,
        ),
        run_config=RunConfig(
            name=place.name,
            **place.ray_storage(),
            failure_config=FailureConfig(max_failures=group.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=2,
                checkpoint_score_attribute=SCORE if student.watch.every else None,
                checkpoint_score_order="min",
            ),
        ),
        datasets={"train": lambda: rollout_stream(teachers, pool, place, rounds, workers)},
        dataset_config=DataConfig(execution_options=options),
    )
    with _listening(board, on_metrics, on_preview):
        trainer.fit()
    checkpoint = place.best_checkpoint() if keep_best else place.latest_checkpoint()
    assert checkpoint is not None, "the last round always reports a checkpoint"
    return checkpoint


@contextmanager
def _listening(board: Any, on_metrics: OnMetrics, on_preview: OnPreview) -> Iterator[None]:
    """Hand the board's metrics to callbacks while the block runs, and the rest after it."""
    stop, seen = threading.Event(), 0

    def drain() -> None:
        nonlocal seen
        for metrics in ray.get(board.metrics_after.remote(seen)):
            on_metrics(metrics)
            seen += 1
        for preview in ray.get(board.previews.remote()):
            on_preview(*preview)

    def listen() -> None:
        while not stop.wait(1.0):
            drain()

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    try:
        yield
        time.sleep(0.2)
    finally:
        stop.set()
        listener.join()
        drain()
        ray.kill(board)
