"""Tie the teacher pool to the student group: a Ray Data stream into a Ray Train worker group."""

import secrets
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.train
from ray.data import ActorPoolStrategy, DataIterator, Dataset, ExecutionOptions
from ray.train import (
    CheckpointConfig,
    DataConfig,
    FailureConfig,
    RunConfig,
    ScalingConfig,
)
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.arguments import StudentArguments, TeacherPoolArguments
from actors.policy_board import PolicyBoard
from actors.run_place import RunPlace
from actors.session import say_why_it_failed
from actors.store_probe import store_probed
from actors.stream_tick import hand_on_at_once
from actors.teacher_pool import TeacherActor
from actors.watchdog import OnMetrics, OnPreview, watched
from pipeline.config import ElasticWorkers, PoolSettings, StudentGroupSettings
from pipeline.distill.names import SCORE


def rollout_stream(
    arguments: TeacherPoolArguments, pool: PoolSettings, place: RunPlace, rounds: int, ranks: int
) -> Dataset:
    """The stream of rollout blocks from the checkpointed round on, in (round, logical rank) order.

    It is the same whatever the number of workers.
    """
    rows = [
        {"round": r, "rank": rank}
        for r in range(place.checkpointed_round(), rounds)
        for rank in range(ranks)
    ]
    # Ray Train calls this in a process of its own, where the driver's settings do not hold.
    say_why_it_failed()
    hand_on_at_once()
    return ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map_batches(
        TeacherActor,
        fn_constructor_kwargs={"arguments": arguments},
        # A block's one row: where there are GPUs, Ray Data wants a number.
        batch_size=1,
        compute=ActorPoolStrategy(min_size=pool.min, max_size=pool.max),
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus or None,
        resources=pool.resources,
        # Ray Data lets an actor begin a later block first (seen in 2 of 12 streams): at lag 0 it
        # would then wait for a policy that needs the round queued behind it.
        allow_out_of_order_execution=False,
    )


class DealtInTurn(DataConfig):  # type: ignore[misc]
    """Block i of a stream goes to worker i mod W as soon as it is there, as ``Dealing`` says.

    Ray Train's own way makes the workers' rows equal: where the workers do not divide the logical
    ranks it would hold a block back until the next round's is there, which at lag 0 never comes.
    """

    def configure(
        self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any
    ) -> list[dict[str, DataIterator]]:
        """Of each dataset, an iterator for each worker."""
        hands: list[dict[str, DataIterator]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            # A copy: its options must not become the driver's.
            stream = dataset.copy(dataset)
            stream.set_name(name)
            # Splits of one size, one by one to whoever has the least, the first of equals.
            stream.context.execution_options = ExecutionOptions(preserve_order=True)
            for hand, part in zip(hands, stream.streaming_split(world_size), strict=True):
                hand[name] = part
        return hands


def scaling_of(group: StudentGroupSettings) -> ScalingConfig:
    """Ray Train's words for the group: so many workers, or a range of them."""
    size: dict[str, Any] = {"num_workers": group.workers}
    if isinstance(group.workers, ElasticWorkers):
        size["num_workers"] = group.workers.min, group.workers.max
        size["elastic_resize_monitor_interval_s"] = group.workers.resize_seconds
    return ScalingConfig(
        **size,
        use_gpu=group.num_gpus > 0,
        resources_per_worker={"CPU": group.num_cpus}
        | ({"GPU": group.num_gpus} if group.num_gpus else {})
        | group.resources,
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

    Each worker group that Ray Train starts, of whatever size, gets a new stream that begins at the
    checkpointed round. Blocks keep their order, so each worker gets its own blocks of every round.
    """
    place.heal()
    # The actors of a driver that was killed a moment ago may still hold the run's name.
    name = f"{student.board}-{secrets.token_hex(4)}"
    student, teachers = replace(student, board=name), replace(teachers, board=name)
    # Asking for nothing, the board could land on a preemptible node, or on one that counts as idle.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = PolicyBoard.options(  # type: ignore[attr-defined]
        name=name, namespace=student.namespace, scheduling_strategy=here
    ).remote(keep=student.lag + 2, run=place.name)
    rounds, ranks = student.settings.rounds, group.logical_ranks
    trainer = TorchTrainer(
        train_loop,
        train_loop_config={"arguments": student},
        scaling_config=scaling_of(group),
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
        datasets={"train": lambda: rollout_stream(teachers, pool, place, rounds, ranks)},
        dataset_config=DealtInTurn(),
    )
    with store_probed(place.storage), watched(board, on_metrics, on_preview):
        trainer.fit()
    checkpoint = place.best_checkpoint() if keep_best else place.latest_checkpoint()
    assert checkpoint is not None, "the last round always reports a checkpoint"
    return checkpoint


def train_loop(config: dict[str, StudentArguments]) -> None:
    """A worker's part of the training."""
    # Here, and not above: Ray's own processes read this module, and train nothing.
    from actors.student_worker import train

    train(config["arguments"])
