"""The evaluation through Ray's actor pools: the same pictures and scores as without Ray."""

from pathlib import Path

import numpy as np
import torch

from actors.sampler_pool import SamplerActor
from pipeline.config import PoolSettings
from pipeline.stages.evaluate import evaluate
from pipeline.tensor_store import TensorStore
from tests.evaluation_case import make_case


def test_two_actors_make_what_one_process_makes(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    pool = PoolSettings(min=2, max=2)
    cluster = case.recipe.cluster.model_copy(update={"teacher_pool": pool})
    recipe = case.recipe.model_copy(update={"cluster": cluster})
    plan = case.plan()
    evaluation = evaluate(recipe, plan, [case.store])
    assert len(evaluation.scores) == len(plan.rows)
    assert {m: c.nfe for m, c in evaluation.costs.items()} == {
        "base": 6,
        "teacher": 6,
        "student": 4,
    }
    assert not case.plan().unsampled
    assert not case.plan().unjudged

    alone = tmp_path / "alone"
    actor = SamplerActor(recipe.model.path, "cpu", "float32", 1, 8, [str(case.store)], str(alone))
    rows = [plan.rows[0], plan.rows[-1]]
    actor({name: np.array([row[name] for row in rows]) for name in rows[0]})  # type: ignore[literal-required]
    made, expected = TensorStore([plan.pictures]), TensorStore([alone])
    for row in rows:
        key = row["key"]
        # Unlike batches: the same to rounding.
        torch.testing.assert_close(made.get(key), expected.get(key), atol=1e-4, rtol=0)
