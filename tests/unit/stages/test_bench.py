"""What a bench runs, without running it."""

from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from pipeline.bank import Bank, Effect, Instruction, Pair
from pipeline.config import load_recipe, recipe_hash, vary
from pipeline.config_reports import AblationRow
from pipeline.distill.lesson import Lesson
from pipeline.evaluation.effectbench import Method, eval_rows
from pipeline.models.lora_formats import read_lora
from pipeline.problems import InputError
from pipeline.stages import contenders
from pipeline.stages.bench import ABLATION, GENERAL_ALONE, QUICK, ablated, sizes_of
from pipeline.stages.contenders import (
    cascade,
    joint_loras,
    many_steps,
    stacked,
    untrained_contenders,
    wants_general,
)
from pipeline.stages.distill import plan_settings, update_settings
from pipeline.stages.encode import EffectSources
from pipeline.stages.evidence.work import part_of
from pipeline.stages.generality import known_edits
from pipeline.stages.student import run_key_of
from pipeline.types import Manifest, Sample
from tests.evaluation_case import make_case
from tests.tiny_model import write_tiny_model
from tests.unit.distill.halves import Collection, go_on

RECIPE = Path("pipeline/recipes/bench.yaml")


def effect(name: str, category: str) -> Effect:
    return Effect(name, f"make it {name}", None, category, 1.0, "", None, None)


def bank_of(*effects: Effect, general: tuple[Instruction, ...] = ()) -> Bank:
    pairs = tuple(Pair(e.name, Path("a.png"), Path("b.png")) for e in effects)
    return Bank(Path("."), effects, pairs, general, (), ())


def test_a_part_of_the_bank_takes_its_categories_in_turn() -> None:
    kinds = ["tone"] * 5 + ["layout"] * 2 + ["textured"] * 5
    bank = bank_of(*(effect(f"e{i}", kind) for i, kind in enumerate(kinds)))
    part = part_of(bank, 8)
    assert Counter(e.category for e in part.effects) == {"tone": 3, "layout": 2, "textured": 3}
    assert [p.effect for p in part.pairs] == [e.name for e in part.effects]
    # A larger part holds the smaller one: the curves by number of effects are of growing banks.
    assert {e.name for e in part_of(bank, 4).effects} < {e.name for e in part.effects}
    assert part_of(bank, 99).effects == bank.effects


def test_every_ablation_is_another_run_that_a_recipe_allows() -> None:
    recipe = load_recipe(RECIPE)
    hashes = {recipe_hash(vary(recipe, switches)) for switches in ABLATION.values()}
    assert len(hashes) == len(ABLATION)
    quick = vary(recipe, QUICK)
    assert all(vary(quick, switches) for switches in ABLATION.values())


def test_without_the_general_stream_the_warm_start_sees_none_of_it_either() -> None:
    recipe = load_recipe(RECIPE)

    def general(row: AblationRow, more: dict[str, Any]) -> int | None:
        start = ablated(recipe, more | ABLATION[row]).distill.warm_start
        return None if start is None else start.general

    assert general("all", {}) == 6, "the main report's students have them"
    assert general("all - PDSR", {}) == 0
    assert general("PDSR + AOP + TS", {}) is None
    # The kept ablation is of students without.
    assert general("all", recipe.bench.ablation_set) == 0


def test_a_recipe_can_name_every_row_of_the_ablation_and_no_other() -> None:
    assert set(ABLATION) == set(get_args(AblationRow))
    with pytest.raises(InputError, match=r"bench\.ablation(.|\n)*bench\.general_edits") as raised:
        load_recipe(RECIPE, ['bench.ablation=["AOP"]', "bench.general_edits=0"])
    assert "'all - AOP'" in str(raised.value)
    assert len(raised.value.problems) == 2


def test_seeds_share_teachers_and_not_students() -> None:
    recipe = load_recipe(RECIPE)
    one, two = (vary(recipe, {"distill.seed": seed}) for seed in (1, 2))
    assert one.seed == two.seed == recipe.seed
    assert recipe_hash(one) != recipe_hash(two)


def test_a_switch_that_no_recipe_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"distill\.worm"):
        vary(load_recipe(RECIPE), {"distill.worm": 3})
    with pytest.raises(InputError, match="p_switch"):
        vary(load_recipe(RECIPE), {"distill.p_switch": 3.0})


def test_generality_is_asked_in_the_banks_own_words() -> None:
    rows = (
        "make it brighter",
        "brighten the photo",
        "add noise",
        "sing a song",
        "mirror the photo",
    )
    bank = bank_of(general=tuple(Instruction(Path("a.png"), text) for text in rows))
    assert known_edits(bank, 8) == {"make it brighter": "brighten", "mirror the photo": "mirror"}
    assert len(known_edits(bank, 1)) == 1


def test_a_cascade_adds_the_acceleration_to_each_teacher(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    method = cascade(case.recipe, case.manifest, case.student, tmp_path / "made")
    assert (method.sampler, method.steps, method.guidance) == ("student", 4, 1.0)
    for entry in case.manifest.effects:
        both = read_lora(method.adapters[entry.name][0]).modules
        teacher, fast = read_lora(entry.adapter).modules, read_lora(case.student).modules
        for name, module in both.items():
            parts = [lora[name] for lora in (teacher, fast) if name in lora]
            sums = sum(p.scale * p.up.float() @ p.down.float() for p in parts)
            update = module.scale * module.up.float() @ module.down.float()
            torch.testing.assert_close(update, sums, atol=1e-3, rtol=1e-2)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "made").iterdir()}
    stacked([Path(case.manifest.effects[0].adapter), case.student], tmp_path / "made")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "made").iterdir()} == before


def test_contenders_without_training(tmp_path: Path) -> None:
    case = make_case(tmp_path)
    few, *merges = untrained_contenders(case.recipe, case.manifest, tmp_path / "made")
    assert (few.name, few.steps, few.guidance, few.sampler) == ("teacher-few", 4, 1.0, "euler")
    assert [m.name for m in merges] == ["merge-linear", "merge-ties", "merge-dare"]
    for method in merges:
        assert (method.steps, method.guidance) == (3, 4.0)
        # One set of weights for every effect.
        assert len(set(method.adapters.values())) == 1


def test_an_acceleration_lora_is_not_watched_and_keeps_its_name(tmp_path: Path) -> None:
    recipe = vary(load_recipe(RECIPE), {"model.path": str(write_tiny_model(tmp_path / "model"))})
    manifest = Manifest((), (Sample(("a",), "b", "c", "d", None, ((1, 4, 4), (1, 4, 4))),))
    unwatched = {key: value for key, value in GENERAL_ALONE.items() if key != "watch.every"}
    name = run_key_of(vary(recipe, unwatched), manifest)
    assert run_key_of(vary(recipe, GENERAL_ALONE), manifest) == name
    for keep in ("best", "last"):
        watched = vary(recipe, {"watch.every": 5, "watch.keep": keep} | GENERAL_ALONE)
        # Looks at no effects have no range of latents to look at.
        assert watched.watch.every == 0
        assert run_key_of(watched, manifest) == name


def test_joint_loras_are_guided_as_teachers_are(tmp_path: Path) -> None:
    case = make_case(tmp_path)

    def keys(method: Method) -> list[str]:
        return [row["key"] for row in eval_rows([method], ["sepia"], case.test, 0, "m")]

    plain = many_steps(case.recipe, "joint-fm", {}, 1)
    kept = many_steps(vary(case.recipe, {"targets.keep_norm": True}), "joint-fm", {}, 1)
    assert not plain.keep_norm and kept.keep_norm
    assert keys(plain) == keys(replace(kept, keep_norm=False)) != keys(kept)


def test_joint_loras_are_held_to_the_base_on_general_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = ((1, 4, 4), (1, 4, 4))
    pair = Sample(("before",), "student", "prompt", "null", None, shapes)
    row = Sample(("photo",), "edit", "edit", "null", None, shapes)
    model = str(write_tiny_model(tmp_path / "model"))
    recipe = vary(load_recipe(RECIPE), {"model.path": model})
    effects = [EffectSources(effect("snow", "textured"), ((pair, "after"),), ())]
    asked: list[Lesson] = []
    monkeypatch.setattr(contenders, "learn", lambda r, s, lessons, stores: asked.extend(lessons))

    def joint(general: int, *rows: Sample) -> list[Path]:
        varied = vary(recipe, {"bench.joint.general": general})
        manifest = Manifest((), rows)
        return joint_loras(varied, effects, manifest, tmp_path, [0, 1], [], lambda: None)

    held, free = joint(6, row), joint(0, row)
    assert [lesson.general for lesson in asked] == [((row, "photo"),)] * 2 + [()] * 2
    assert all(lesson.pairs == ((pair, "after"),) for lesson in asked)
    assert len({*held, *free}) == 4, "each is kept under what it was shown"
    assert free == joint(0), "rows that nobody asks for are not in the name"
    with pytest.raises(InputError, match=r"set bench\.joint\.general to 0"):
        joint(6)
    bank = bank_of(effect("snow", "textured"))
    with pytest.raises(InputError, match=r"set bench\.joint\.general to 0"):
        wants_general(recipe, bank)
    wants_general(vary(recipe, {"bench.joint.general": 0}), bank)
    wants_general(vary(recipe, recipe.bench.scale_set), bank)


def test_a_size_beyond_the_bank_is_the_banks_and_asked_once() -> None:
    bank = bank_of(*(effect(f"e{i}", "tone") for i in range(18)))
    assert sizes_of(vary(load_recipe(RECIPE), {"bench.scale": [50, 5, 100, 18]}), bank) == [5, 18]
    assert sizes_of(load_recipe(RECIPE), bank) == [5, 10, 18]


def test_what_concerns_effects_alone_changes_nothing_of_an_acceleration_lora(
    tmp_path: Path,
) -> None:
    collection = Collection(tmp_path)
    collection.manifest = Manifest((), collection.manifest.general)
    few = {"distill.rounds": 3, "distill.batch": 2, "distill.ta_fm_batch": 4}

    def trained(alone: dict[str, Any]) -> dict[str, Tensor]:
        recipe = vary(load_recipe(RECIPE), few | alone)
        plan = plan_settings(recipe, collection.manifest)
        trainer = collection.trainer(plan, update_settings(recipe))
        go_on(collection.worker(plan), trainer, range(3), deque([trainer.policy()], maxlen=1))
        return trainer.policy()

    whole, named = trained({"distill.p_switch": 0.0}), trained(GENERAL_ALONE)
    moved = trained(GENERAL_ALONE | {"distill.score_by_step": False})
    assert all(torch.equal(whole[k], named[k]) for k in whole)
    assert not all(torch.equal(whole[k], moved[k]) for k in whole)
