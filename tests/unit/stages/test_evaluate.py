"""Evaluation: the list of pictures, the sampler against slow code, the judge, the cache."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import actors.pool
import actors.session
from actors.judge_pool import JudgeActor
from actors.sampler_pool import SamplerActor
from pipeline.config import PoolSettings
from pipeline.distill.noise import gaussian
from pipeline.distill.schedule import teacher_sigmas
from pipeline.evaluation.effectbench import (
    EvalRow,
    Item,
    JudgeJob,
    Truth,
    by_whole_photograph,
    cost_key,
    eval_rows,
    open_source,
    standard_methods,
)
from pipeline.evaluation.report import ImageScore
from pipeline.miniature.effects import EFFECTS as MINIATURE
from pipeline.miniature.effects import true_samples
from pipeline.models.adapters import BASE, Adapters
from pipeline.models.editor import batch_conditions
from pipeline.models.lora_formats import read_lora
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.problems import InputError
from pipeline.stages.evaluate import evaluate, plan_evaluation, write_evaluation
from pipeline.tensor_store import TensorStore, stored_keys, write_part
from tests.evaluation_case import EFFECTS, Case, make_case
from tests.no_ray import through_pool

COUNTERS = {
    "forwards_per_student_update": {"student_group": 26, "teacher_pool": 15},
    "seconds_per_round": 2.5,
    "student_wait_share": 0.4,
}


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return make_case(tmp_path_factory.mktemp("evaluation"))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Run pools in this process, without Ray; the labels of the pools that ran."""
    ran: list[str] = []

    def in_this_process(
        rows: Sequence[Mapping[str, Any]],
        actor: Any,
        arguments: Mapping[str, Any],
        pool: PoolSettings,
        batch: int,
        label: str,
    ) -> Iterator[dict[str, Any]]:
        if rows:
            ran.append(label)
        return through_pool(rows, actor, arguments, pool, batch, label)

    monkeypatch.setattr(actors.pool, "through_pool", in_this_process)
    monkeypatch.setattr(actors.session, "ray_session", lambda cluster: nullcontext())
    return ran


def sampler(case: Case, folder: Path) -> SamplerActor:
    return SamplerActor(
        case.recipe.model.path, "cpu", "float32", 1, 8, [str(case.store)], str(folder)
    )


def test_every_method_edits_every_photograph_with_every_effect(case: Case) -> None:
    rows = case.plan().rows
    assert len({row["key"] for row in rows}) == len(rows) == (1 + 2 + 1) * 2 * 2
    teacher = [row for row in rows if row["method"] == "teacher"]
    assert {row["draw"] for row in teacher} == {0, 1}, "pairs: teachers are each other's truth"
    assert {row["adapter"] for row in rows if row["method"] == "base"} == {""}
    assert {row["adapter"] for row in rows if row["method"] == "student"} == {str(case.student)}
    assert all(row["prompt"].startswith("student-") == (row["method"] == "student") for row in rows)
    assert case.plan().forwards == sum(8 if r["method"] == "student" else 12 for r in rows) // 2


def test_a_key_holds_what_its_picture_depends_on(case: Case) -> None:
    def keys(model: str = "m", seed: int = 0, guided: float = 4.0, null: str = "null") -> set[str]:
        student = ("student", "hash")
        methods = [
            replace(m, guidance=guided)
            for m in standard_methods(case.recipe, case.manifest, student)
        ]
        test = [replace(t, null_prompt=null) for t in case.test]
        return {row["key"] for row in eval_rows(methods, list(EFFECTS), test, seed, model)}

    assert keys() == keys()
    for other in (keys(model="n"), keys(seed=1), keys(guided=5.0), keys(null="other")):
        assert not keys() & other
    # Without guidance the empty prompt is not used.
    assert keys(guided=1.0) == keys(guided=1.0, null="other")


def test_two_photographs_of_one_name_are_refused(case: Case) -> None:
    with pytest.raises(ValueError, match="photographs need names of their own"):
        eval_rows([], list(EFFECTS), [case.test[0], case.test[0]], 0, "m")


def test_miniature_truth_needs_the_miniatures_effects(case: Case) -> None:
    unknown = tuple(replace(e, name=f"my_{e.name}") for e in case.bank.effects)
    settings = case.recipe.evaluate.model_copy(update={"truth": "miniature"})
    recipe = case.recipe.model_copy(update={"evaluate": settings})
    bank = replace(case.bank, effects=unknown)
    with pytest.raises(InputError, match=r"set evaluate\.truth to pairs"):
        plan_evaluation(recipe, bank, case.test, case.methods(), case.cache)
    with pytest.raises(InputError, match="no held-out photographs"):
        plan_evaluation(case.recipe, case.bank, [], case.methods(), case.cache)


def slow_edit(case: Case, row: EvalRow) -> NDArray[np.float32]:
    """One row by itself: forwards one after another, diffusers' formulas written out."""
    editor = QwenImageEditor.load(case.recipe.model.path, ["transformer", "vae"])
    adapters, name = Adapters(editor.transformer), BASE
    if row["adapter"]:
        name = "it"
        adapters.add_file(name, read_lora(row["adapter"]))
    store = TensorStore([case.store])
    source = store.get(row["source"])

    def forward(x: torch.Tensor, sigma: float, prompt: str) -> torch.Tensor:
        shapes = [(1, 4, 4), (1, 4, 4)]
        conditions = batch_conditions([store.get(row[prompt])], [source], shapes)  # type: ignore[literal-required]
        with torch.no_grad(), adapters.use(name):
            return editor.velocity(x, torch.tensor([sigma]), conditions)

    def noise(step: int) -> torch.Tensor:
        key = (row["seed"], "evaluate", row["effect"], row["photograph"], row["draw"], step)
        return gaussian(source.shape, *key)[None]

    x = noise(0)
    if row["sampler"] == "euler":
        sigmas = teacher_sigmas(row["steps"], 3.0)
        for i in range(row["steps"]):
            cond, uncond = (forward(x, sigmas[i], p) for p in ("prompt", "null_prompt"))
            x = x + (sigmas[i + 1] - sigmas[i]) * (uncond + row["guidance"] * (cond - uncond))
    else:
        for k in range(row["steps"]):
            u = (row["steps"] - k) / row["steps"]
            sigma = 3 * u / (1 + 2 * u)
            x = x if k == 0 else (1 - sigma) * x + sigma * noise(k)
            x = x - sigma * forward(x, sigma, "prompt")
    return np.asarray(editor.decode(x, (4, 4))[0].permute(1, 2, 0).numpy())


def test_a_mixed_batch_gives_what_slow_code_gives_and_counts_its_forwards(
    case: Case, tmp_path: Path
) -> None:
    wanted = {("base", "sepia"), ("teacher", "sepia"), ("teacher", "snow"), ("student", "snow")}
    rows = [
        row
        for row in case.plan().rows
        if (row["method"], row["effect"]) in wanted
        and row["photograph"] == case.test[0].photograph
        and row["draw"] == 0
    ]
    assert len(rows) == 4
    actor = sampler(case, tmp_path)
    done = actor({name: np.array([row[name] for row in rows]) for name in rows[0]})  # type: ignore[literal-required]
    assert done["nfe"].tolist() == [6, 6, 6, 4]
    assert (done["seconds"] > 0).all()
    store = TensorStore([tmp_path])
    pictures = [store.get(row["key"]) for row in rows]
    assert pictures[0].shape == (64, 64, 3)
    for row, picture in zip(rows, pictures, strict=True):
        np.testing.assert_allclose(picture.numpy(), slow_edit(case, row), atol=2e-4)
        assert store.get(cost_key(row["key"]))[1] == (4 if row["method"] == "student" else 6)
    assert (pictures[0] - pictures[1]).abs().max() > 1e-2, "the adapter must matter"


def judge(folder: Path, truth: Truth, monkeypatch: pytest.MonkeyPatch, case: Case) -> JudgeActor:
    def unchanged(editor: object, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        return pictures

    # The random autoencoder would turn all to grey.
    monkeypatch.setattr("actors.judge_pool.autoencoded", unchanged)
    model = case.recipe.model.path
    return JudgeActor(
        model,
        "cpu",
        "float32",
        1,
        str(folder),
        str(folder / "s"),
        truth,
        EFFECTS,
    )


def test_the_judge_knows_true_samples_from_the_photograph(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = case.test[0]
    photograph = open_source(Path(source.path), 64, 64)
    outputs = {
        Item("base", "sepia", 0, "a"): photograph,
        Item("base", "snow", 0, "b"): photograph,
        Item("student", "sepia", 0, "c"): true_samples("sepia", photograph, 1, 5)[0],
        Item("student", "snow", 0, "d"): true_samples("snow", photograph, 1, 5)[0],
    }
    write_part(tmp_path, [(item.key, torch.from_numpy(p)) for item, p in outputs.items()])
    actor = judge(tmp_path, "miniature", monkeypatch, case)
    job = JudgeJob("job", source.photograph, source.path, tuple(outputs))
    actor({name: np.array([value]) for name, value in job.row().items()})
    scores = [ImageScore(**s) for s in json.loads((tmp_path / "s" / "job.json").read_bytes())]
    assert [s.happened for s in scores] == ["source", "source", "sepia", "snow"]
    assert [s.bad_case for s in scores] == [1, 1, 0, 0]
    assert scores[2].fidelity == 60
    assert [s.fidelity is None for s in scores] == [False, True, False, True]
    assert [s.texture_distance is None for s in scores] == [True, False, True, False]
    assert scores[0].fidelity is not None
    assert scores[0].fidelity < 30
    assert (scores[3].texture_distance or 9) < 0.5 * (scores[1].texture_distance or 0)
    assert scores[2].subject == pytest.approx(1, abs=1e-3)
    assert [s.family for s in scores] == [MINIATURE[s.effect].family for s in scores]


def test_without_truth_an_output_is_held_against_the_teachers_other_draws(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = case.test[0]
    photograph = open_source(Path(source.path), 64, 64)
    snow = true_samples("snow", photograph, 2, 5)
    sepia = true_samples("sepia", photograph, 1, 5)[0]
    outputs = {
        Item("teacher", "sepia", 0, "a"): sepia,
        Item("teacher", "sepia", 1, "b"): np.clip(sepia + 0.1, 0, 1),
        Item("teacher", "snow", 0, "c"): snow[0],
        Item("teacher", "snow", 1, "d"): snow[1],
        Item("student", "sepia", 0, "e"): np.clip(sepia + 0.1, 0, 1),
        Item("student", "snow", 0, "f"): sepia,
    }
    write_part(tmp_path, [(item.key, torch.from_numpy(p)) for item, p in outputs.items()])
    actor = judge(tmp_path, "pairs", monkeypatch, case)
    job = JudgeJob("job", source.photograph, source.path, tuple(outputs))
    scores = actor.judge(job)
    assert scores[0].fidelity == pytest.approx(scores[1].fidelity)
    assert scores[0].fidelity is not None
    assert 19 < scores[0].fidelity < 24, "not against itself: that would be 60 dB"
    assert scores[4].fidelity == 60, "draw 0 is held against draw 1"
    assert [s.happened for s in scores] == ["sepia", "sepia", "snow", "snow", "sepia", "sepia"]
    with pytest.raises(ValueError, match="at least 2 draws"):
        actor.judge(replace(job, items=tuple(i for i in job.items if i.draw == 0)))


def test_what_is_done_is_not_done_again(case: Case, tmp_path: Path, in_process: list[str]) -> None:
    case = replace(case, cache=tmp_path / "cache")
    plan = case.plan()
    assert len(plan.unsampled) == len(plan.rows)
    first = evaluate(case.recipe, plan, [case.store])
    assert in_process == ["evaluate: edit", "evaluate: score"]
    assert len(first.scores) == len(plan.rows)
    assert {m: c.nfe for m, c in first.costs.items()} == {"base": 6, "teacher": 6, "student": 4}
    assert all(cost.ms_per_image > 0 for cost in first.costs.values())

    again = evaluate(case.recipe, case.plan(), [case.store])
    assert in_process == ["evaluate: edit", "evaluate: score"], "nothing may start"
    assert again.scores == first.scores
    assert again.costs == first.costs

    # A part is lost: its rows, and no others, are made again; the scores stand.
    sorted(plan.pictures.glob("part-*"))[0].unlink()
    half = case.plan()
    assert 0 < len(half.unsampled) < len(plan.rows)
    assert not half.unjudged
    assert {r["key"] for r in half.unsampled}.isdisjoint(stored_keys(plan.pictures))
    evaluate(case.recipe, half, [case.store])
    assert in_process[2:] == ["evaluate: edit"]
    assert not case.plan().unsampled


def test_everything_is_written(tmp_path: Path, in_process: list[str]) -> None:
    case = make_case(tmp_path, photographs=1, truth="miniature")
    evaluation = evaluate(case.recipe, case.plan(), [case.store])
    out = tmp_path / "out"
    history = {"loss": [3.0, 2.0, 1.0]}
    report = write_evaluation(out, case.recipe, case.bank, case.test, evaluation, COUNTERS, history)
    assert json.loads((out / "report.json").read_bytes())["methods"] == report["methods"]
    assert list(report["methods"]) == ["base", "teacher", "student"]
    assert "| sepia" in (out / "report.md").read_text()
    written = {p.relative_to(out).as_posix() for p in out.rglob("*.png")}
    sheets = {f"methods/{m}/{e}.png" for m in report["methods"] for e in EFFECTS}
    strips = {f"strips/{m}/{e}.png" for m in [*report["methods"], "source"] for e in EFFECTS}
    assert written == sheets | strips | {"contact_sheet.png", "bleed_matrix.png", "loss_curves.png"}
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 128, "source, truth, teacher, student"


def test_crops_of_one_photograph_are_one_photograph_to_the_bootstrap() -> None:
    def score(photograph: str, draw: int) -> ImageScore:
        return ImageScore("student", "snow", "textured", photograph, draw, None, 0.1, 0, 1, "snow")

    named = by_whole_photograph(
        [score("coffee_001", 0), score("coffee_001", 1), score("coffee_006", 0), score("cat_2", 0)]
    )
    assert [(s.photograph, s.draw) for s in named] == [
        ("coffee", 0),
        ("coffee", 1),
        ("coffee", 2),
        ("cat_2", 0),
    ]
