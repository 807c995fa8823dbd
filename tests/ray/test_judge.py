"""The field's judges under Ray Data's actor pools: as in one process, and resumable."""

from pathlib import Path

import pytest
import torch

from pipeline.config import JudgeSettings, PoolSettings
from pipeline.stages.judge import Judged, judge
from pipeline.tensor_store import write_part
from tests.evaluation_case import make_case
from tests.fake_endpoint import fake_endpoint, words_of
from tests.tiny_judges import write_tiny_clip

pytestmark = pytest.mark.slow


def answer(body: dict[str, object]) -> str:
    words = words_of(body)
    return '{"happened": true}' if "Did the effect happen" in words else '{"score": 4}'


def test_two_actors_judge_all_and_a_second_run_judges_nothing(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    plan = case.plan()
    rng = torch.Generator().manual_seed(0)
    write_part(
        plan.pictures, [(row["key"], torch.rand(16, 16, 3, generator=rng)) for row in plan.rows]
    )
    cluster = case.recipe.cluster.model_copy(update={"encoder_pool": PoolSettings(min=2, max=2)})
    clip = write_tiny_clip(tmp_path / "clip")
    with fake_endpoint(answer, fail=0.2, nonsense=0.2, late=0.1) as fake:
        vlm = {"url": fake.url, "model": "m", "actors": 2, "asks": 12, "retries": 12}
        judges = JudgeSettings.model_validate(
            {"clip": str(clip), "batch": 3, "vlm": vlm | {"requests_per_minute": 1e6}}
        )
        evaluate = case.recipe.evaluate.model_copy(update={"judges": judges})
        recipe = case.recipe.model_copy(update={"evaluate": evaluate, "cluster": cluster})

        def judged() -> Judged | None:
            where = (plan.pictures, tmp_path / "judgements")
            return judge(recipe, case.bank, case.test, plan.rows, *where, lambda: None)

        first = judged()
        outputs = sum(row["draw"] == 0 for row in plan.rows)
        asked = fake.by_question()
        assert len(asked) == 4 * outputs
        for each in asked.values():
            assert each[-1] in fake.GOOD and sum(outcome in fake.GOOD for outcome in each) == 1
        assert first is not None and len(first.scores) == 3 * outputs
        assert {s.value for s in first.scores if s.metric == "vsa"} == {4.0}
        spent = len(fake.log)
        assert judged() == first
        assert len(fake.log) == spent
