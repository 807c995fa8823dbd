"""A number of workers made a range is the same run; what is printed of it says the range."""

from pathlib import Path

import pytest

from actors.session import asked_cpus, asked_resources
from actors.student_group import scaling_of
from pipeline.config import ElasticWorkers, Recipe, StudentGroupSettings, recipe_hash, vary
from pipeline.dry_run import memory_lines
from pipeline.stages.distill import arguments_of
from pipeline.stages.student import run_key_of
from pipeline.types import EffectEntry, Manifest
from tests.evaluation_case import make_case

MANIFEST = Manifest((EffectEntry("a", "", "", 1.0, ()),), ())
WORKERS = "cluster.student_group.workers"


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return vary(make_case(tmp_path).recipe, {WORKERS: 4})


def test_a_range_is_the_run_of_its_most_workers(recipe: Recipe) -> None:
    key = run_key_of(recipe, MANIFEST)
    for least, seconds in ((1, 60.0), (3, 600.0), (4, 60.0)):
        elastic = vary(recipe, {WORKERS: {"min": least, "max": 4, "resize_seconds": seconds}})
        assert recipe_hash(elastic) == recipe_hash(recipe)
        assert run_key_of(elastic, MANIFEST) == key
        assert arguments_of(elastic, MANIFEST, [], key)[0].logical_ranks == 4
    fewer = vary(recipe, {WORKERS: {"min": 1, "max": 3}})
    assert run_key_of(fewer, MANIFEST) != key


def test_ray_train_is_asked_for_a_number_or_a_range() -> None:
    fixed = scaling_of(StudentGroupSettings(workers=3))
    assert (fixed.num_workers, fixed.elasticity_enabled) == (3, False)
    workers = ElasticWorkers(min=2, max=3, resize_seconds=90)
    elastic = scaling_of(StudentGroupSettings(workers=workers))
    assert (elastic.num_workers, elastic.elasticity_enabled) == ((2, 3), True)
    assert elastic.elastic_resize_monitor_interval_s == 90
    assert elastic.resources_per_worker == fixed.resources_per_worker == {"CPU": 1}


def test_a_local_cluster_has_room_for_the_most(recipe: Recipe) -> None:
    elastic = vary(recipe, {WORKERS: {"min": 1, "max": 4}})
    assert asked_cpus(elastic.cluster) == asked_cpus(recipe.cluster)
    assert asked_resources(elastic.cluster) == asked_resources(recipe.cluster)


def test_a_sharded_process_is_budgeted_where_the_group_is_smallest(recipe: Recipe) -> None:
    def of_student(workers: object) -> str:
        sharded = vary(recipe, {WORKERS: workers, "cluster.student_group.shard": True})
        text = "\n".join(memory_lines(sharded, [((1, 4, 4), (1, 4, 4))], 6))
        return text[: text.index("a teacher process")]

    elastic = of_student({"min": 2, "max": 4})
    assert "a student process, one of 2: " in elastic
    assert elastic.splitlines()[1:] == of_student(2).splitlines()[1:]
