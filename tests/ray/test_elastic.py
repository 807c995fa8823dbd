"""A group that may be larger than the cluster is as large as fits, and makes the same student."""

from pathlib import Path

import pytest

from actors.rollout_worker import rollout_worker
from actors.student_worker import student_trainer
from pipeline.distill.single_process import distill_in_one_process
from pipeline.stages.distill import History, arguments_of
from pipeline.stages.student import student_weights
from tests.ray.test_distill import distilled, manifest_of
from tests.tiny_run import recipe_in, share_caches, write_tiny_bank


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_bank(tmp_path_factory.mktemp("bank"))


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["false", "true"])
def test_three_logical_ranks_where_two_workers_fit(bank: Path, shard: str) -> None:
    """Each of these tests' Ray nodes has two of ``student``."""
    output = f"elastic-{shard}"
    share_caches(bank, output)
    group = f"{{workers: {{min: 1, max: 3}}, resources: {{student: 1}}, shard: {shard}}}"
    recipe = recipe_in(bank, output, f"cluster.student_group={group}", lag=0, rounds=5)
    file = distilled(recipe)
    rows = History(bank / output / "history.jsonl").load()
    assert [row["workers"] for row in rows] == [2] * 5

    stores = [bank / "first/cache/encodings", bank / "first/cache/targets"]
    student, teachers = arguments_of(recipe, manifest_of(recipe), stores, "x")
    trainer, worker = student_trainer(student), rollout_worker(teachers)
    distill_in_one_process(trainer, worker, range(5))
    assert trainer.average is not None
    found = student_weights(file)
    assert found.keys() == trainer.average.keys()
    far = max((found[key] - v).abs().max().item() for key, v in trainer.average.items())
    print(f"sharded {shard}: at most {far:.1e} apart")
    assert far < 1e-5
    assert max(v.abs().max() for k, v in found.items() if "lora_B" in k) > 1e-3
