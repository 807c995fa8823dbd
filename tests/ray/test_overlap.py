"""Overlap through the real stream and group, with a teacher and a student that only sleep."""

import itertools
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.data import Dataset

from actors import rollout_worker, student_group, student_worker
from actors.arguments import StudentArguments, TeacherPoolArguments
from actors.run_place import RunPlace
from actors.student_group import rollout_stream
from actors.teacher_pool import TeacherActor
from pipeline.config import PoolSettings, StudentGroupSettings
from pipeline.stages.distill import arguments_of
from pipeline.types import Rollout
from tests.ray.test_distill import manifest_of
from tests.tiny_run import recipe_in, write_tiny_bank

pytestmark = pytest.mark.slow
SECONDS, ROUNDS, WARM = 0.3, 60, 15


class SleepyWorker:
    """A rollout half that takes 300 ms, and writes down when."""

    def load_policy(self, weights: Any) -> None:
        pass

    def roll(self, round_index: int, rank: int, version: int) -> Rollout:
        began = time.time()
        time.sleep(SECONDS)
        one, few = np.ones(1), np.zeros((1, 1, 1), dtype=np.float32)
        return Rollout(
            round=np.full(1, round_index),
            rank=np.full(1, rank),
            policy_version=np.full(1, version),
            x_k=few,
            x_g=few,
            teacher_x0=few,
            fake_x0=few[None],
            ts_x0=few,
            ts_teacher_x0=few,
            teacher_forwards=one,
            seconds=one * began,
        )


class SleepyTeacher(TeacherActor):
    def __init__(self, arguments: TeacherPoolArguments) -> None:
        rollout_worker.rollout_worker = lambda arguments: SleepyWorker()  # type: ignore[assignment,return-value]
        super().__init__(arguments)


def sleepy_stream(*arguments: Any) -> Dataset:
    """Called where Ray Train makes the stream, in a process of its own."""
    student_group.TeacherActor = SleepyTeacher  # type: ignore[misc]
    return rollout_stream(*arguments)


def sleepy_loop(config: dict[str, Any]) -> None:
    real = student_worker.student_trainer

    def trainer(arguments: StudentArguments, workers: int = 1) -> Any:
        made = real(arguments, workers)

        def update_hand(
            rollouts: Sequence[Rollout], round_index: int, ranks: Sequence[int]
        ) -> dict[str, float]:
            time.sleep(SECONDS)
            return {"ended": time.time()}

        made.update_hand = update_hand  # type: ignore[method-assign,assignment]
        return made

    student_worker.student_trainer = trainer
    student_worker.train(config["arguments"])


@pytest.fixture(scope="module")
def arguments(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[StudentArguments, TeacherPoolArguments]:
    folder = write_tiny_bank(tmp_path_factory.mktemp("bank"))
    recipe = recipe_in(folder, "first", rounds=ROUNDS, checkpoint_every=1000)
    stores = [folder / "first/cache/encodings", folder / "first/cache/targets"]
    return arguments_of(recipe, manifest_of(recipe), stores, "overlap")


@pytest.mark.parametrize("lag", [0, 1])
def test_the_student_waits_for_nothing_at_lag_1_and_nothing_is_ahead_at_lag_0(
    arguments: tuple[StudentArguments, TeacherPoolArguments],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lag: int,
) -> None:
    import cloudpickle

    import tests.ray.test_overlap as here

    monkeypatch.setattr(student_group, "rollout_stream", sleepy_stream)
    monkeypatch.setattr(student_group, "train_loop", sleepy_loop)
    cloudpickle.register_pickle_by_value(here)
    student, teachers = (replace(a, lag=lag) for a in arguments)
    rows: list[dict[str, float]] = []
    student_group.run_student_group(
        student,  # type: ignore[arg-type]
        teachers,  # type: ignore[arg-type]
        PoolSettings(min=3, max=3, num_cpus=0.5),
        StudentGroupSettings(),
        RunPlace(tmp_path, f"lag{lag}"),
        rows.append,
    )
    warm = rows[WARM:]
    wait = sum(row["seconds_wait"] for row in warm)
    share = wait / (wait + sum(row["seconds_update"] for row in warm))
    rate = len(warm) / (wait + sum(row["seconds_update"] for row in warm))
    print(f"lag {lag}: wait share {share:.3f}, {rate:.2f} rounds/s")
    if lag == 1:
        assert share <= 0.10
    else:
        # Round r's rollout begins only once the update of round r - 1 is over.
        for before, row in itertools.pairwise(rows):
            assert row["seconds_rollout"] >= before["ended"]
