"""When a student is given a warm start, and what that depends on."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import load_recipe, vary
from pipeline.distill.lesson import Lesson
from pipeline.models.lora_formats import LoraModule, write_lora
from pipeline.problems import InputError
from pipeline.stages import warm_start as stage
from pipeline.stages.warm_start import warm_start
from pipeline.types import EffectEntry, Manifest, Sample
from tests.tiny_model import WIDTH, write_tiny_model

LAYERS = [f"transformer_blocks.{i}.attn.to_q" for i in range(4)]
SHAPES = ((1, 4, 4), (1, 4, 4))


def manifest(*prompts: str) -> Manifest:
    return Manifest(
        tuple(
            EffectEntry(p, f"{p}.safetensors", p, 1.0, (sample(p, "target"), sample(p, None)))
            for p in prompts
        ),
        (sample("general", None),),
    )


def sample(prompt: str, target: str | None) -> Sample:
    return Sample(("source",), f"{prompt}-student", f"{prompt}-teacher", "null", target, SHAPES)


@pytest.fixture
def lessons(monkeypatch: pytest.MonkeyPatch) -> list[Lesson]:
    """Lessons asked for; learning one writes its file."""
    asked: list[Lesson] = []

    def learn(recipe: object, settings: object, lessons: list[Lesson], stores: object) -> None:
        asked.extend(lessons)
        for lesson in lessons:
            lesson.out.parent.mkdir(parents=True, exist_ok=True)
            lesson.out.touch()

    monkeypatch.setattr(stage, "learn", learn)
    return asked


RECIPE = load_recipe("pipeline/recipes/demo.yaml")
WARM = vary(RECIPE, {"distill.warm_start": {"steps": 5}})


def test_none_where_the_recipe_or_the_bank_has_nothing_for_it(
    tmp_path: Path, lessons: list[Lesson]
) -> None:
    cold = vary(WARM, {"distill.warm_start": None})
    assert warm_start(cold, manifest("snow"), tmp_path, []) is None
    assert warm_start(WARM, manifest(), tmp_path, []) is None
    assert lessons == []


def test_the_student_learns_every_target_under_its_own_prompt(
    tmp_path: Path, lessons: list[Lesson]
) -> None:
    path = warm_start(WARM, manifest("snow", "rain"), tmp_path, [])
    (lesson,) = lessons
    assert lesson.out == path
    # Samples without a target teach nothing; no other prompt may reach the student.
    assert lesson.role == "student" and lesson.teachers == ()
    assert [(s.student_prompt, y) for s, y in lesson.pairs] == [
        ("snow-student", "target"),
        ("rain-student", "target"),
    ]


def test_or_after_its_teachers(tmp_path: Path, lessons: list[Lesson]) -> None:
    follows = vary(WARM, {"distill.warm_start": {"steps": 5, "follow": "teachers"}})
    collection = manifest("snow", "rain")
    assert warm_start(follows, collection, tmp_path, []) != warm_start(
        WARM, collection, tmp_path, []
    )
    assert [t and t.adapter for t in lessons[0].teachers] == [
        "snow.safetensors",
        "rain.safetensors",
    ]


def test_made_once_and_again_when_anything_differs(tmp_path: Path, lessons: list[Lesson]) -> None:
    snow = manifest("snow")
    paths = {
        warm_start(recipe, effects, tmp_path, [])
        for recipe, effects in (
            (WARM, snow),
            (WARM, snow),
            (WARM, manifest("rain")),
            (vary(WARM, {"distill.seed": 7}), snow),
            (vary(WARM, {"distill.warm_start": {"steps": 6}}), snow),
            (vary(WARM, {"student.lora": {"rank": 4, "alpha": 4.0}}), snow),
        )
    }
    assert len(paths) == 5 == len(lessons)


def test_a_student_that_grows_learns_the_new_effects_and_keeps_the_old(
    tmp_path: Path, lessons: list[Lesson], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"student.lora": {"rank": 2, "alpha": 2.0, "modules": ["attn.to_q"]}}
    start = tmp_path / "start.safetensors"
    one = LoraModule(torch.ones(2, WIDTH), torch.ones(WIDTH, 2))
    write_lora(start, dict.fromkeys(LAYERS, one), {})
    write_tiny_model(tmp_path / "model")
    grows = {"grow.start_from": str(start), "grow.new_effects": ["rain"]}
    recipe = vary(WARM, own | grows | {"model.path": str(tmp_path / "model")})
    both = manifest("snow", "rain")
    assert warm_start(recipe, both, tmp_path, []) is None, "as published: none"
    recipe = vary(recipe, {"grow.warm_start": {"steps": 5}})
    monkeypatch.chdir(tmp_path)
    recipe = vary(recipe, {"grow.start_from": start.name})
    path = warm_start(recipe, both, tmp_path, [])
    (lesson,) = lessons
    assert path == lesson.out and lesson.start == start
    assert [s.student_prompt for s, _ in lesson.pairs] == ["rain-student"]
    assert [s.student_prompt for s, _ in lesson.known] == ["snow-student"]
    assert warm_start(recipe, both, tmp_path, []) == path and len(lessons) == 1
    other = LoraModule(torch.zeros(2, WIDTH), torch.ones(WIDTH, 2))
    write_lora(start, dict.fromkeys(LAYERS, other), {})
    assert warm_start(recipe, both, tmp_path, []) != path, "another start"


def test_the_base_is_kept_on_general_rows_of_one_size_or_it_says_that_there_is_none(
    tmp_path: Path, lessons: list[Lesson]
) -> None:
    held = vary(WARM, {"distill.warm_start": {"steps": 5, "general": 2}})
    snow = manifest("snow")
    warm_start(held, snow, tmp_path, [])
    (row,) = snow.general
    assert lessons[0].general == ((row, "source"),)
    small = replace(row, shapes=((1, 4, 4), (1, 2, 2)))
    with pytest.raises(InputError, match=r"set warm_start\.general to 0"):
        warm_start(held, replace(snow, general=(small,)), tmp_path, [])
