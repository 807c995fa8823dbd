"""The student group: one Ray Train worker's loop over its part of the rollout stream."""

import math
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed
from torch import Tensor

from actors.announcer import Announcer, gpu_memory
from actors.arguments import StudentArguments
from actors.student_watch import StudentWatch
from pipeline.distill.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.distill.dealing import Dealing
from pipeline.distill.names import SCORE
from pipeline.distill.start import begin_with
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.mirror import at_hand, local_path
from pipeline.models.adapters import Adapters
from pipeline.models.families import load_editor
from pipeline.models.loading import BaseRows
from pipeline.models.local import local_model
from pipeline.models.lora_formats import lora_at_hand
from pipeline.models.sharding import shard_transformer
from pipeline.problems import disk_errors
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest, Rollout


def student_trainer(arguments: StudentArguments, workers: int = 1) -> StudentTrainer:
    """Build the student's half in this process: base, two adapters, two optimizers."""
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    sharded = arguments.shard and workers > 1
    editor = load_editor(
        arguments.model,
        ["transformer"],
        arguments.device,
        dtype,
        arguments.quantize,
        weights=not sharded or arguments.quantize is not None,
    )
    if arguments.gradient_checkpointing:
        editor.transformer.enable_gradient_checkpointing()
    adapters = Adapters(editor.transformer)
    for offset, name in enumerate((STUDENT, FAKE)):
        seed = 2 * arguments.plan.seed + offset
        lora = arguments.rank, arguments.alpha, arguments.modules
        adapters.add(name, *lora, seed, device="cpu" if sharded else None)
    if arguments.start is not None:
        fake = at_hand(arguments.start_fake) if arguments.start_fake else None
        start = lora_at_hand(arguments.start)
        begin_with(adapters, start, fake, arguments.alpha / arguments.rank)
    if sharded:
        whole_base = arguments.quantize is not None
        rows = None if whole_base else BaseRows(local_model(arguments.model))
        shard_transformer(editor.transformer, editor.device, rows)
    return StudentTrainer(
        editor=editor,
        adapters=adapters,
        store=TensorStore([local_path(folder) for folder in arguments.stores]),
        manifest=Manifest.from_dict(arguments.manifest),
        plan=arguments.plan,
        settings=arguments.settings,
        all_reduce=_mean_over_group if workers > 1 and not sharded else _alone,
        dealing=Dealing(arguments.logical_ranks, workers),
        sharded=sharded,
    )


def student_watch(arguments: StudentArguments, trainer: StudentTrainer) -> StudentWatch | None:
    """Who looks at the student, if anybody."""
    if not arguments.watch.every:
        return None
    return StudentWatch(trainer, arguments.model, arguments.dtype, arguments.watch.pictures)


def train(arguments: StudentArguments) -> None:
    """``TorchTrainer``'s loop: consume rollouts, update, publish, record, checkpoint."""
    context = ray.train.get_context()
    if context.get_world_rank() > 0:
        _train(arguments, None)
        return
    board = ray.get_actor(arguments.board, namespace=arguments.namespace)
    with Announcer(board, keep=arguments.lag + 2) as announcer:
        _train(arguments, announcer)


def _train(arguments: StudentArguments, announcer: Announcer | None) -> None:
    """The loop of one worker; ``announcer`` is that of rank 0."""
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    trainer = student_trainer(arguments, workers)
    progress = resume(trainer, arguments)
    recent = deque(progress.policies, maxlen=arguments.lag + 1)
    # A sharded group's workers all look, for gathering and forwards take all.
    watch = student_watch(arguments, trainer) if rank == 0 or arguments.shard else None
    if announcer is not None:
        versions = {progress.round - age: policy for age, policy in enumerate(reversed(recent))}
        announcer.publish(versions)
        announcer.doing("waiting", progress.round)

    # The stream that this group was given begins where its checkpoint ends.
    dealing = replace(trainer.dealing, first=progress.round)
    rounds = range(progress.round, arguments.settings.rounds)
    blocks = iter(
        ray.train.get_dataset_shard("train").iter_batches(batch_size=None, prefetch_batches=0)
    )
    round_index, waited_since = progress.round, time.monotonic()
    for ranks, rollouts in hands(blocks, dealing, rounds, rank):
        arrived = time.monotonic()
        if announcer is not None:
            announcer.doing("working", round_index)
        for rollout in rollouts:
            check_version(rollout, round_index, arguments.lag)
        metrics = trainer.update_hand(rollouts, round_index, ranks)
        round_index += 1
        # A sharded group's workers all take part, for gathering takes all.
        policy = trainer.policy(keep=rank == 0) if rank == 0 or arguments.shard else {}
        if announcer is not None:
            recent.append(policy)
            updated = time.monotonic()
            announcer.publish({round_index: recent[-1]})
            now = time.monotonic()
            metrics |= {
                "round": float(round_index - 1),
                "policy_lag": float(round_index - 1 - int(rollouts[0].policy_version[0])),
                "forwards_teacher_pool": float(np.mean([r.teacher_forwards for r in rollouts])),
                "seconds_rollout": float(np.mean([r.seconds for r in rollouts])),
                "seconds_wait": arrived - waited_since,
                "seconds_update": now - arrived,
                "seconds_publish": now - updated,
                "workers": float(workers),
            }
            if memory := gpu_memory():
                metrics["gpu_memory_student"] = memory
        last = round_index == arguments.settings.rounds
        saved = last or round_index % arguments.checkpoint_every == 0
        # To Ray Train a checkpoint without a score would be the best of all.
        saved = saved or arguments.watch.due(round_index)
        if watch is not None:
            looking = time.monotonic()
            metrics |= watch.watch.round(torch.as_tensor(np.concatenate([r.x_g for r in rollouts])))
            if saved:
                found, preview = watch.look()
                metrics |= found | {"seconds_look": time.monotonic() - looking}
                if announcer is not None:
                    announcer.show(round_index, preview)
        if announcer is not None:
            announcer.record(metrics)
        if saved:
            score = comparable(metrics.get(SCORE))
            at = Progress(round_index, arguments.recipe_hash, list(recent), score)
            report_checkpoint(trainer, at, rank)
        waited_since = time.monotonic()
        if announcer is not None and not last:
            announcer.doing("waiting", round_index)


def hands(
    blocks: Iterator[dict[str, Any]], dealing: Dealing, rounds: range, worker: int
) -> Iterator[tuple[list[int], list[Rollout]]]:
    """A worker's logical ranks and their rollouts, round by round, from its part of the stream."""
    for round_index in rounds:
        ranks = dealing.owned(round_index, worker)
        yield ranks, [Rollout.from_columns(next(blocks)) for _ in ranks]


def resume(trainer: StudentTrainer, arguments: StudentArguments) -> Progress:
    """Continue at the group's checkpoint, or begin at round 0."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return Progress(0, arguments.recipe_hash, [trainer.policy()])
    with checkpoint.as_directory() as folder:
        return load_checkpoint(Path(folder) / "student", trainer, arguments.recipe_hash)


def check_version(rollout: Rollout, round_index: int, lag: int) -> None:
    """Staleness is exact: round r is rolled out under version ``max(0, r - lag)``."""
    expected = max(0, round_index - lag)
    found = set(rollout.policy_version.tolist())
    assert found == {expected}, f"round {round_index} wants policy {expected}, got {found}"


def comparable(score: float | None) -> float | None:
    """A score that sorts: what is no number is worse than every number."""
    return score if score is None or math.isfinite(score) else sys.float_info.max


def report_checkpoint(trainer: StudentTrainer, progress: Progress, rank: int) -> None:
    """Rank 0 saves what all gather; every rank reports, for ``report`` is a barrier."""
    metrics: dict[str, float] = {"round": progress.round}
    if progress.score is not None:
        metrics[SCORE] = progress.score
    with disk_errors("the run's checkpoint"), tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder) / "student", trainer, progress, write=rank == 0)
        if rank != 0:
            ray.train.report(metrics)
            return
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _alone(gradients: Sequence[Tensor]) -> None:
    """One worker's gradient is the group's."""


def _mean_over_group(gradients: Sequence[Tensor]) -> None:
    flat = torch._utils._flatten_dense_tensors(list(gradients))  # type: ignore[no-untyped-call]
    torch.distributed.all_reduce(flat)
    flat /= torch.distributed.get_world_size()
    means = torch._utils._unflatten_dense_tensors(flat, list(gradients))  # type: ignore[no-untyped-call]
    for gradient, mean in zip(gradients, means, strict=True):
        gradient.copy_(mean)
