"""Growing a student: what it begins with, who is new, and how often either is drawn."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.bank import Bank
from pipeline.config import Recipe, recipe_hash, vary
from pipeline.models.lora_formats import LoraModule, write_lora
from pipeline.problems import InputError
from pipeline.prompting import make_prompts
from pipeline.stages.distill import plan_settings
from pipeline.stages.grow import effect_weights, known_by, new_effects, start_of
from pipeline.stages.student import run_key_of
from pipeline.types import EffectEntry, Manifest
from tests.evaluation_case import make_case
from tests.tiny_model import WIDTH


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    case = make_case(tmp_path)
    lora = {"rank": 2, "alpha": 2.0, "modules": ["attn.to_q"]}
    return vary(case.recipe, {"student.lora": lora})


def write_start(path: Path, rank: int = 2, effects: list[str] | None = None) -> Path:
    """A LoRA of the recipe's modules that says which effects it knows."""
    modules = {
        f"transformer_blocks.{i}.attn.to_q": LoraModule(
            torch.full((rank, WIDTH), 0.1), torch.full((WIDTH, rank), 0.2)
        )
        for i in range(4)
    }
    said = [
        {"effect": e, "trigger": f"<{e}_own>", "prompt": f"<{e}_own> a {e}"} for e in effects or []
    ]
    write_lora(path, modules, {"effects": json.dumps(said)} if effects else {})
    return path


def manifest(**weights: float) -> Manifest:
    entries = (EffectEntry(name, "", "", weight, ()) for name, weight in weights.items())
    return Manifest(tuple(entries), ())


def test_new_effects_share_the_stream_with_all_the_old_ones(recipe: Recipe, tmp_path: Path) -> None:
    start = write_start(tmp_path / "s.safetensors", effects=["a", "b", "c"])
    of = manifest(a=1.0, b=1.0, c=2.0, d=1.0, e=3.0)
    assert effect_weights(recipe, of) == (1.0, 1.0, 2.0, 1.0, 3.0)
    grown = vary(recipe, {"grow.start_from": str(start), "grow.new_share": 0.4})
    assert effect_weights(grown, of) == pytest.approx((0.15, 0.15, 0.3, 0.1, 0.3))
    assert plan_settings(grown, of).effect_weights == effect_weights(grown, of)
    named = vary(grown, {"grow.new_effects": ["a"]})
    assert effect_weights(named, of)[0] == pytest.approx(0.4)
    # Nobody new: the student is trained on as it was.
    assert effect_weights(grown, manifest(a=1.0, b=5.0)) == (1.0, 5.0)


def test_a_start_is_part_of_what_names_a_run_and_no_start_changes_nothing(
    recipe: Recipe, tmp_path: Path
) -> None:
    assert recipe_hash(vary(recipe, {"grow.new_share": 0.9})) == recipe_hash(recipe)
    start = write_start(tmp_path / "s.safetensors", effects=["a"])
    grown = vary(recipe, {"grow.start_from": str(start)})
    assert recipe_hash(vary(grown, {"grow.new_share": 0.9})) != recipe_hash(grown)
    key = run_key_of(grown, manifest(a=1.0))
    assert key != run_key_of(recipe, manifest(a=1.0))
    # Content, not the place.
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes(start.read_bytes())
    assert run_key_of(vary(grown, {"grow.start_from": str(moved)}), manifest(a=1.0)) == key
    other = write_start(tmp_path / "t.safetensors", effects=["b"])
    assert run_key_of(vary(grown, {"grow.start_from": str(other)}), manifest(a=1.0)) != key


def test_old_effects_keep_their_words(recipe: Recipe, tmp_path: Path) -> None:
    case = make_case(tmp_path / "case")
    grown = vary(recipe, {"grow.start_from": str(write_start(tmp_path / "s", effects=["sepia"]))})
    start = start_of(grown)
    assert start is not None
    sepia, snow = make_prompts(known_by(start, case.bank).effects, recipe.prompts, 0)
    assert (sepia.student, sepia.teacher) == ("<sepia_own> a sepia", "make it sepia")
    assert snow == make_prompts(case.bank.effects, recipe.prompts, 0)[1]


def test_the_fake_score_is_taken_from_the_runs_last_checkpoint(
    recipe: Recipe, tmp_path: Path
) -> None:
    run = tmp_path / "training" / "key"
    (run / "checkpoint_2" / "student").mkdir(parents=True)
    lora = write_start(run / "student.safetensors", effects=["a"])
    grown = vary(recipe, {"grow.start_from": str(lora)})
    bare = start_of(grown)
    assert bare is not None and bare.fake is None
    save_file({"x": torch.zeros(1)}, run / "checkpoint_2" / "student" / "fake.safetensors")
    latest = {"checkpoint_dir_name": "checkpoint_2", "metrics": {"round": 2}}
    (run / "checkpoint_manager_snapshot.json").write_text(
        json.dumps({"latest_checkpoint_result": latest})
    )
    start = start_of(grown)
    assert start is not None and start.key != bare.key
    assert start.fake == run / "checkpoint_2" / "student" / "fake.safetensors"


@pytest.mark.parametrize(
    ("rank", "effects", "changes", "said"),
    [
        (3, ["a"], {}, r"of rank 3.*student\.lora\.rank to 3"),
        (2, ["a"], {"student.lora.modules": ["attn.to_k"]}, "not on the student's modules"),
        (2, None, {}, "does not say which effects it knows.*set grow.new_effects"),
        (2, ["a"], {"grow.new_effects": ["z"]}, "no such effect in the bank"),
        (2, ["a"], {"grow.start_from": "nowhere"}, "no such file or folder"),
    ],
)
def test_a_wrong_start_is_one_clear_problem(
    recipe: Recipe,
    tmp_path: Path,
    rank: int,
    effects: list[str] | None,
    changes: dict[str, object],
    said: str,
) -> None:
    start = write_start(tmp_path / "s.safetensors", rank, effects)
    with pytest.raises(InputError, match=said):
        new_effects(vary(recipe, {"grow.start_from": str(start)} | changes), ["a", "b"])


def test_a_bank_of_new_effects_keeps_the_old_photographs(tmp_path: Path) -> None:
    from pipeline.stages.evidence.growth import joined

    case = make_case(tmp_path)
    new = Bank(tmp_path, (replace(case.bank.effects[0], name="other"),), (), (), (), (tmp_path,))
    both = joined(case.bank, new)
    assert [e.name for e in both.effects] == ["sepia", "snow", "other"]
    assert both.test == case.bank.test
