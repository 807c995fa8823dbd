"""Actors ask for the custom resources that the recipe names, and are placed by them."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from actors import session, student_group
from actors.arguments import WatchArguments
from actors.pool import through_pool
from actors.run_place import RunPlace
from pipeline.config import ClusterSettings, PoolSettings, StudentGroupSettings


class Assigned:
    """Returns what Ray assigned to its actor."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {"teacher": [ray.get_runtime_context().get_assigned_resources().get("teacher", 0)]}


def test_a_pool_is_placed_by_its_resources() -> None:
    pool = PoolSettings(num_cpus=0.5, resources={"teacher": 2.0})
    (batch,) = through_pool([{"row": 0}], Assigned, {}, pool, 1, "placed")
    assert batch["teacher"].tolist() == [2.0]


class Together:
    """Returns which rows it was given together, and on how much of a GPU."""

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        gpus = ray.get_runtime_context().get_assigned_resources().get("GPU", 0)
        return {"rows": [str(batch["row"].tolist())], "gpus": [gpus]}


@pytest.mark.parametrize("gpus", [0.0, 0.25])
def test_an_actor_sees_full_batches_and_a_last_one(gpus: float) -> None:
    pool = PoolSettings(min=2, max=2, num_cpus=0.5, num_gpus=gpus)
    rows = [{"row": i} for i in range(7)]
    done = list(through_pool(rows, Together, {}, pool, 3, "together"))
    seen = sorted(rows for batch in done for rows in batch["rows"].tolist())
    assert seen == ["[0, 1, 2]", "[3, 4, 5]", "[6]"]
    assert {g for batch in done for g in batch["gpus"].tolist()} == {gpus}


class Stop(Exception):
    """Raised by the trainer that stands in for Ray Train, once it has been asked to fit."""


def test_student_group_and_rollouts_ask_for_their_resources_and_order(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    asked: dict[str, Any] = {}

    class Trainer:
        def __init__(self, loop: Any, **arguments: Any) -> None:
            asked["student"] = arguments["scaling_config"].resources_per_worker
            self.stream = arguments["datasets"]["train"]

        def fit(self) -> None:
            self.stream()
            raise Stop

    made = ray.data.Dataset.map_batches

    def map_batches(self: Any, actor: type, **arguments: Any) -> Any:
        asked["teacher"] = arguments["resources"]
        asked["out of order"] = arguments["allow_out_of_order_execution"]
        return made(self, actor, **arguments)

    monkeypatch.setattr(student_group, "TorchTrainer", Trainer)
    monkeypatch.setattr(ray.data.Dataset, "map_batches", map_batches)

    @dataclass(frozen=True)
    class Arguments:
        board: str = "placement"
        namespace: str = "collectionlora"
        lag: int = 0
        watch: WatchArguments = field(default_factory=WatchArguments)
        settings: Any = field(default_factory=lambda: SimpleNamespace(rounds=1))

    with pytest.raises(Stop):
        student_group.run_student_group(
            Arguments(),  # type: ignore[arg-type]
            Arguments(),  # type: ignore[arg-type]
            PoolSettings(num_gpus=1.0, resources={"teacher": 1.0}),
            StudentGroupSettings(num_cpus=2.0, num_gpus=1.0, resources={"student": 1.0}),
            RunPlace(tmp_path, "placed"),
            lambda metrics: None,
        )
    assert asked == {
        "teacher": {"teacher": 1.0},
        "out of order": False,
        "student": {"CPU": 2.0, "GPU": 1.0, "student": 1.0},
    }


def test_a_local_cluster_has_the_resources_that_the_recipe_asks_for() -> None:
    cluster = ClusterSettings(
        encoder_pool=PoolSettings(max=2, resources={"encode": 0.5}),
        teacher_pool=PoolSettings(max=3, resources={"teacher": 1.0, "ssd": 1.0}),
        student_group=StudentGroupSettings(workers=2, resources={"student": 1.0, "ssd": 2.0}),
    )
    assert session.asked_resources(cluster) == {
        "encode": 1.0,
        "teacher": 3.0,
        "ssd": 7.0,
        "student": 2.0,
    }
