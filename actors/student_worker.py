"""The student group: one Ray Train worker's loop over its shard of the rollout stream."""

import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
import torch.distributed
from torch import Tensor

from pipeline.distill.checkpoint import Progress, load_checkpoint, save_checkpoint
from pipeline.distill.start import begin_with
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer, UpdateSettings
from pipeline.mirror import local_path
from pipeline.models.adapters import Adapters
from pipeline.models.families import load_editor
from pipeline.models.loading import BaseRows
from pipeline.models.local import local_model
from pipeline.models.quantization import Quantize
from pipeline.models.sharding import shard_transformer
from pipeline.plan import PlanSettings
from pipeline.problems import disk_errors
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest, Rollout


@dataclass(frozen=True)
class StudentArguments:
    """What a student worker is built from: plain data."""

    model: str
    device: str
    dtype: str
    threads: int
    gradient_checkpointing: bool
    rank: int
    alpha: float
    modules: tuple[str, ...]
    start: str | None
    start_fake: str | None
    stores: tuple[str, ...]
    manifest: dict[str, Any]
    plan: PlanSettings
    settings: UpdateSettings
    lag: int
    checkpoint_every: int
    recipe_hash: str
    board: str
    namespace: str
    quantize: Quantize | None = None
    shard: bool = False


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
        fake = Path(arguments.start_fake) if arguments.start_fake else None
        begin_with(adapters, Path(arguments.start), fake, arguments.alpha / arguments.rank)
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
    )


def train_loop(config: dict[str, Any]) -> None:
    """``TorchTrainer``'s loop: consume rollouts, update, publish, record, checkpoint."""
    arguments: StudentArguments = config["arguments"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    board = ray.get_actor(arguments.board, namespace=arguments.namespace)
    trainer = student_trainer(arguments, workers)
    progress = resume(trainer, arguments)
    recent = deque(progress.policies, maxlen=arguments.lag + 1)
    if rank == 0:
        for age, policy in enumerate(reversed(recent)):
            publish(board, progress.round - age, policy)

    round_index, waited_since = progress.round, time.monotonic()
    shard = ray.train.get_dataset_shard("train")
    for columns in shard.iter_batches(batch_size=None, prefetch_batches=0):
        arrived = time.monotonic()
        rollout = Rollout.from_columns(columns)
        check_version(rollout, round_index, arguments.lag)
        metrics = trainer.update(rollout, round_index, rank)
        round_index += 1
        policy = trainer.policy(keep=rank == 0) if rank == 0 or arguments.shard else {}
        if rank == 0:
            recent.append(policy)
            publish(board, round_index, recent[-1])
            now = time.monotonic()
            metrics |= {
                "round": float(round_index - 1),
                "policy_lag": float(round_index - 1 - int(rollout.policy_version[0])),
                "forwards_teacher_pool": float(rollout.teacher_forwards.mean()),
                "seconds_rollout": float(rollout.seconds.mean()),
                "seconds_wait": arrived - waited_since,
                "seconds_update": now - arrived,
            }
            board.record.remote(metrics)
        last = round_index == arguments.settings.rounds
        if last or round_index % arguments.checkpoint_every == 0:
            report_checkpoint(trainer, round_index, arguments.recipe_hash, list(recent), rank)
        waited_since = time.monotonic()
        if last:
            break


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


def publish(board: Any, version: int, policy: dict[str, Tensor]) -> None:
    """Put weights in the object store and tell the board."""
    reference = ray.put({k: v.numpy() for k, v in policy.items()})
    ray.get(board.publish.remote(version, [reference]))


def report_checkpoint(
    trainer: StudentTrainer,
    round_index: int,
    recipe_hash: str,
    policies: list[dict[str, Tensor]],
    rank: int,
) -> None:
    """Rank 0 saves what all gather; every rank reports, for ``report`` is a barrier."""
    metrics = {"round": round_index}
    with disk_errors("the run's checkpoint"), tempfile.TemporaryDirectory() as folder:
        progress = Progress(round_index, recipe_hash, policies)
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
