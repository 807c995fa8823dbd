"""Whole runs in one process: every pool a function call, the distillation the reference loop.

The same bits as with Ray (tests/ray/test_distill.py holds that), for tests of what comes after.
"""

import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors import pool, session, student_group
from actors.arguments import StudentArguments, TeacherPoolArguments
from actors.rollout_worker import rollout_worker
from actors.student_group import RunPlace
from actors.student_worker import student_trainer, student_watch
from pipeline.distill.checkpoint import Progress, save_checkpoint
from pipeline.distill.names import SCORE
from pipeline.distill.watch import best_of


@contextmanager
def no_ray() -> Iterator[None]:
    """Within it no stage starts Ray."""
    kept = pool.through_pool, session.ray_session, student_group.run_student_group
    pool.through_pool = through_pool  # type: ignore[assignment]
    session.ray_session = ray_session  # type: ignore[assignment]
    student_group.run_student_group = run_student_group  # type: ignore[assignment]
    from pipeline import controller

    held, controller.ray_session = controller.ray_session, ray_session  # type: ignore[assignment]
    try:
        yield
    finally:
        pool.through_pool, session.ray_session, student_group.run_student_group = kept
        controller.ray_session = held


@contextmanager
def ray_session(cluster: object) -> Iterator[None]:
    yield


def through_pool(
    rows: Sequence[Mapping[str, Any]],
    actor: Any,
    arguments: Mapping[str, Any],
    pool: object,
    batch: int,
    label: str,
) -> Iterator[dict[str, Any]]:
    """One actor, called with a block of rows after another."""
    if not rows:
        return
    worker = actor(**arguments)
    for start in range(0, len(rows), batch):
        some = rows[start : start + batch]
        yield worker({key: np.asarray([row[key] for row in some]) for key in some[0]})


def run_student_group(
    student: StudentArguments,
    teachers: TeacherPoolArguments,
    pool: object,
    group: object,
    place: RunPlace,
    on_metrics: Any,
    on_preview: Any,
    keep_best: bool,
) -> Path:
    """The reference loop, with a checkpoint at every look."""
    trainer, worker = student_trainer(student), rollout_worker(teachers)
    watch = student_watch(student, trainer)
    rounds, lag = student.settings.rounds, student.lag
    policies = deque([trainer.policy()], maxlen=lag + 1)
    scores: dict[int, float] = {}
    for r in range(rounds):
        version = max(0, r - lag)
        worker.load_policy(policies[version - r - 1])
        rollout = worker.roll(r, 0, version)
        began = time.monotonic()
        metrics = trainer.update(rollout, r, 0)
        policies.append(trainer.policy())
        now = time.monotonic()
        metrics |= {
            "round": float(r),
            "policy_lag": float(r - version),
            "forwards_teacher_pool": float(rollout.teacher_forwards.mean()),
            "seconds_rollout": float(rollout.seconds.mean()),
            "seconds_wait": 0.0,
            "seconds_update": now - began,
        }
        last = r + 1 == rounds
        if watch is not None:
            metrics |= watch.watch.round(torch.as_tensor(rollout.x_g))
            if last or student.watch.due(r + 1):
                found, preview = watch.look()
                metrics |= found | {"seconds_look": time.monotonic() - now}
                on_preview(r + 1, preview)
        if last or SCORE in metrics:
            scores[r] = metrics.get(SCORE, 0.0)
            progress = Progress(r + 1, student.recipe_hash, list(policies))
            save_checkpoint(_folder(place, r), trainer, progress)
        on_metrics(metrics)
    return _folder(place, best_of(scores) if keep_best else rounds - 1)


def _folder(place: RunPlace, round_index: int) -> Path:
    return place.storage / place.name / f"checkpoint_{round_index:06d}" / "student"
