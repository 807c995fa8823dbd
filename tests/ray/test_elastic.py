"""A checkpoint of two workers resumed by one, and the reverse: the same as without Ray."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from actors.run_place import RunPlace
from actors.student_group import run_student_group
from actors.student_worker import StudentArguments, student_trainer
from actors.teacher_pool import TeacherPoolArguments, rollout_worker
from pipeline.config import PoolSettings, StudentGroupSettings
from pipeline.distill.checkpoint import load_student
from pipeline.distill.update import StudentTrainer
from pipeline.stages.distill import arguments_of
from tests.ray.test_distill import manifest_of
from tests.tiny_run import recipe_in, write_tiny_bank

ROUNDS = 4


@pytest.fixture(scope="module")
def arguments(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[StudentArguments, TeacherPoolArguments]:
    folder = write_tiny_bank(tmp_path_factory.mktemp("bank"))
    recipe = recipe_in(folder, "first", rounds=ROUNDS, checkpoint_every=ROUNDS // 2, ema=0.0)
    stores = [folder / "first/cache/encodings", folder / "first/cache/targets"]
    return arguments_of(recipe, manifest_of(recipe), stores, "elastic")


def with_ray(
    arguments: tuple[StudentArguments, TeacherPoolArguments],
    place: RunPlace,
    rounds: int,
    workers: int | tuple[int, int],
) -> dict[str, Tensor]:
    """Up to a round, which ends the run there: the rates do not depend on it."""
    student, teachers = arguments
    student = replace(student, settings=replace(student.settings, rounds=rounds))
    group = StudentGroupSettings(workers=workers, num_cpus=0.5)
    rows: list[dict[str, float]] = []
    done = run_student_group(
        student, teachers, PoolSettings(num_cpus=0.5), group, place, rows.append
    )
    sizes = {row["workers"] for row in rows}
    assert sizes == {float(workers if isinstance(workers, int) else workers[1])}
    return load_student(done)


class Together:
    """An all-reduce among threads: the mean of what they bring."""

    def __init__(self, workers: int) -> None:
        self._barrier, self._brought = threading.Barrier(workers), dict[int, list[Tensor]]()

    def of(self, rank: int) -> Callable[[Sequence[Tensor]], None]:
        def reduce(gradients: Sequence[Tensor]) -> None:
            self._brought[rank] = [g.clone() for g in gradients]
            self._barrier.wait()
            for i, gradient in enumerate(gradients):
                parts = [self._brought[r][i] for r in sorted(self._brought)]
                gradient.copy_(torch.stack(parts).sum(0) / len(parts))
            self._barrier.wait()

        return reduce


def without_ray(
    arguments: tuple[StudentArguments, TeacherPoolArguments], sizes: Sequence[int]
) -> dict[str, Tensor]:
    """Round r by ``sizes[r]`` workers, each a thread with a trainer of its own; lag 0."""
    student, teachers = arguments
    trainers = [student_trainer(student) for _ in range(max(sizes))]
    worker = rollout_worker(teachers)
    for round_index, size in enumerate(sizes):
        together = Together(size)
        lead = trainers[0]
        worker.load_policy(lead.policy())
        rollouts = [worker.roll(round_index, rank, round_index) for rank in range(size)]

        def update(rank: int, trainer: StudentTrainer) -> None:
            torch.set_num_threads(1)
            trainer.all_reduce = together.of(rank)  # noqa: B023
            trainer.update(rollouts[rank], round_index, rank)  # noqa: B023

        threads = [
            threading.Thread(target=update, args=(rank, trainers[rank])) for rank in range(size)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for behind in trainers[size:]:
            behind_the(lead, behind)
    return trainers[0].policy()


def behind_the(lead: StudentTrainer, other: StudentTrainer) -> None:
    """Bring a trainer that did not take part up to the one that did."""
    for name, mine, its in (
        ("student", other.student_optimizer, lead.student_optimizer),
        ("fake", other.fake_optimizer, lead.fake_optimizer),
    ):
        other.adapters.replace(name, {k: v.detach() for k, v in lead.adapters.state(name).items()})
        pairs = zip(its.param_groups[0]["params"], mine.param_groups[0]["params"], strict=True)
        for theirs, ours in pairs:
            if theirs in its.state:
                mine.state[ours] = {k: v.clone() for k, v in its.state[theirs].items()}


@pytest.mark.parametrize("sizes", [(2, 1), (1, 2)])
def test_resumed_at_the_same_round_by_another_number_of_workers(
    arguments: tuple[StudentArguments, TeacherPoolArguments],
    tmp_path: Path,
    sizes: tuple[int, int],
) -> None:
    half = ROUNDS // 2
    place = RunPlace(tmp_path, "elastic")
    with_ray(arguments, place, half, sizes[0])
    assert place.checkpointed_round() == half
    # An elastic group of that size at most: as if the cluster had room for no more.
    resumed = with_ray(arguments, place, ROUNDS, (1, sizes[1]))
    reference = without_ray(arguments, [sizes[0]] * half + [sizes[1]] * half)
    assert all((resumed[key] == value).all() for key, value in reference.items())
    fixed = without_ray(arguments, [sizes[0]] * ROUNDS)
    assert any((resumed[key] != value).any() for key, value in fixed.items())
