"""Orthogonal triggers: who is asked, and when nobody need be."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.bank import Bank, load_bank
from pipeline.config import Recipe, load_recipe, vary
from pipeline.places import Places
from pipeline.stages import wording
from tests.unit.malformed.good_bank import good_work


@pytest.fixture
def given(tmp_path: Path) -> tuple[Recipe, Bank]:
    work = good_work(tmp_path)
    work.save()
    changes = ("prompts.triggers=orthogonal",)
    return load_recipe(work.recipe_file, changes), load_bank(work.bank_file)


def no_ray() -> None:
    pytest.fail("nobody need be asked")


def test_effects_that_all_have_a_trigger_need_none(given: tuple[Recipe, Bank]) -> None:
    recipe, bank = given
    named = replace(
        bank, effects=tuple(replace(e, trigger=f"word{i}") for i, e in enumerate(bank.effects))
    )
    assert wording.worded(recipe, named, Places.of(recipe.output), no_ray) == named


def test_a_model_at_an_address_is_asked_there(
    given: tuple[Recipe, Bank], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, bank = given
    asked: list[str] = []

    class Task:
        def options(self, **resources: object) -> "Task":
            return self

        def remote(self, prompts: list[str], seen: list[str], model: str, *rest: Any) -> Any:
            asked.append(model)
            return np.eye(len(prompts))

    monkeypatch.setattr("actors.prompt_tasks.prompt_directions", Task())
    monkeypatch.setattr("ray.get", lambda found: found)
    monkeypatch.setattr(wording, "_seen", lambda recipe, bank: [])
    far = vary(recipe, {"model.path": "hf://Qwen/Qwen-Image-Edit"})
    wording._encoded(far, bank, ["a", "b"], lambda: None)
    assert asked == ["hf://Qwen/Qwen-Image-Edit"]
