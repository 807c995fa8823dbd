"""The judges of the field over an evaluation, the endpoint failing, late and talking nonsense.

The pool's actors run in this process: `tests/ray/test_judge.py` has them under Ray Data.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import actors.pool
from pipeline.config import JudgeSettings, Recipe
from pipeline.problems import InputError
from pipeline.stages.evaluate import EvaluationPlan
from pipeline.stages.judge import Judged, judge
from pipeline.tensor_store import write_part
from tests.evaluation_case import Case, make_case
from tests.fake_endpoint import Fake, fake_endpoint, words_of
from tests.no_ray import through_pool
from tests.tiny_judges import write_tiny_clip, write_tiny_dino


@dataclass
class Judging:
    """Pictures of noise for every row of a tiny evaluation, and their judging."""

    case: Case
    plan: EvaluationPlan
    judgements: Path

    def judged(self, **judges: Any) -> Judged | None:
        settings = JudgeSettings.model_validate(judges)
        evaluate = self.case.recipe.evaluate.model_copy(update={"judges": settings})
        recipe: Recipe = self.case.recipe.model_copy(update={"evaluate": evaluate})
        return judge(
            recipe,
            self.case.bank,
            self.case.test,
            self.plan.rows,
            self.plan.pictures,
            self.judgements,
            lambda: None,
        )

    @property
    def outputs(self) -> int:
        return sum(row["draw"] == 0 for row in self.plan.rows)


@pytest.fixture
def judging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Judging:
    monkeypatch.setattr(actors.pool, "through_pool", through_pool)
    case = make_case(tmp_path)
    plan = case.plan()
    rng = torch.Generator().manual_seed(0)
    pictures = [(row["key"], torch.rand(16, 16, 3, generator=rng)) for row in plan.rows]
    write_part(plan.pictures, pictures)
    return Judging(case, plan, tmp_path / "judgements")


def settings(url: str, **changes: Any) -> dict[str, Any]:
    given = {"url": url, "model": "m", "requests_per_minute": 1e6, "timeout": 120.0}
    return given | {"asks": 12, "retries": 12} | changes


def verdict(body: dict[str, Any]) -> str:
    """Sepia happens, snow does not; the second pass likes what it sees a little less."""
    words = words_of(body)
    if "Score the edit" in words:
        return json.dumps({"reward": 1.25})
    if "Did the effect happen" in words:
        return f"I think. {json.dumps({'reason': 'so', 'happened': 'sepia' in words})}"
    return json.dumps({"reason": "so", "score": 4 if body["seed"] < 1000 else 3})


def values(judged: Judged | None, metric: str, effect: str) -> set[float]:
    assert judged is not None
    return {s.value for s in judged.scores if (s.metric, s.effect) == (metric, effect)}


def check_cost(fake: Fake, questions: int) -> None:
    """Every question was asked until its one good answer, and not after."""
    asked = fake.by_question()
    assert len(asked) == questions
    assert all(
        each[-1] in fake.GOOD and sum(e in fake.GOOD for e in each) == 1 for each in asked.values()
    )


def test_all_judged_each_asked_again_only_as_needed(judging: Judging) -> None:
    n = judging.outputs
    assert n == 12  # base, teacher and student on two effects and two photographs
    with fake_endpoint(verdict, fail=0.2, nonsense=0.2, late=0.1) as fake:
        judged = judging.judged(vlm=settings(fake.url), edit_reward=settings(fake.url))
        # Two passes of stage one on all, of stage two on sepia's half, one reward each.
        check_cost(fake, 2 * n + n + n)
        spent = len(fake.log)
        assert fake.of("failed") + fake.of("dropped") > 0 and fake.of("nonsense") > 0
        assert judging.judged(vlm=settings(fake.url), edit_reward=settings(fake.url)) == judged
        assert len(fake.log) == spent, "all of it is kept"
    assert judged is not None
    assert values(judged, "bcr", "sepia") == {0.0} and values(judged, "bcr", "snow") == {1.0}
    assert values(judged, "vsa", "sepia") == {3.5} and values(judged, "vsa", "snow") == {0.0}
    assert values(judged, "edit_reward", "snow") == {1.25}
    # The passes agree on what happened; of the scores each pass gave one throughout.
    assert judged.agreement == pytest.approx({"happened": 1.0, "kept": 0.0}, abs=1e-12)
    reward, vlm = judged.notes
    nonsense = fake.of("nonsense")
    assert f"{n} answers by m" in reward and f"{3 * n} answers by m" in vlm
    again = [int(note.split("asks (")[1].split()[0]) for note in judged.notes]
    assert sum(again) >= nonsense


def test_what_got_no_usable_answer_leaves_no_file_and_is_asked_alone(judging: Judging) -> None:
    stubborn = {"on": True}

    def answer(body: dict[str, Any]) -> str:
        return "no idea" if stubborn["on"] and "snow" in words_of(body) else verdict(body)

    with fake_endpoint(answer) as fake:
        with pytest.raises(InputError, match=r"got no usable answer .*no JSON object"):
            judging.judged(vlm=settings(fake.url, asks=2))
        kept = list((judging.judgements / "vlm").iterdir())
        assert len(kept) == fake.of("good") - 2 * judging.outputs
        assert all(json.loads(path.read_bytes())["value"] is True for path in kept)
        stubborn["on"], before = False, len(fake.log)
        assert judging.judged(vlm=settings(fake.url, asks=2)) is not None
        # Snow's half of stage one in two passes, then stage two of sepia's half in two.
        assert len(fake.log) - before == judging.outputs + judging.outputs


def test_one_damaged_answer_is_one_question(judging: Judging) -> None:
    with fake_endpoint(verdict) as fake:
        first = judging.judged(edit_reward=settings(fake.url))
        spent = len(fake.log)
        damaged = next((judging.judgements / "edit_reward").iterdir())
        damaged.write_text(damaged.read_text()[:20])
        again = judging.judged(edit_reward=settings(fake.url))
        assert again is not None and first is not None and again.scores == first.scores
        assert len(fake.log) == spent + 1


def test_local_folders_score_each_output_against_its_photograph(
    judging: Judging, tmp_path: Path
) -> None:
    clip, dino = write_tiny_clip(tmp_path / "clip"), write_tiny_dino(tmp_path / "dino")
    for number in range(2):
        write_tiny_dino(tmp_path / "sim" / f"branch{number}", number)
    judged = judging.judged(clip=str(clip), dino=str(dino), dreamsim=str(tmp_path / "sim"), batch=3)
    assert judged is not None
    for metric in ("clip", "dino", "dreamsim"):
        found = [s.value for s in judged.scores if s.metric == metric]
        assert len(found) == judging.outputs and len(set(found)) == len(found)
        assert all(-1.001 <= value <= 2.001 for value in found)
    files = {p: p.stat().st_mtime_ns for p in (judging.judgements / "clip").iterdir()}
    # A folder that goes on with what is missing does that alone, and gives the same.
    gone = next(iter(files))
    gone.unlink()
    assert judging.judged(clip=str(clip), dino=str(dino), batch=3) is not None
    after = {p: p.stat().st_mtime_ns for p in files}
    assert [p for p in files if files[p] != after[p]] == [gone]


def test_none_asked_for_is_none(judging: Judging) -> None:
    assert judging.judged() is None


def test_edit_rewards_weights_are_refused_with_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"install and serve it"):
        JudgeSettings.model_validate({"edit_reward": "models/EditReward"})


@pytest.mark.parametrize("kind", ["clip", "dino", "dreamsim"])
def test_no_folder_is_said_before_any_actor(judging: Judging, kind: str) -> None:
    with pytest.raises(InputError, match=rf"judges\.{kind}.*no such folder"):
        judging.judged(**{kind: "nowhere/at/all"})
