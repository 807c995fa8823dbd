"""``--dry-run`` of a small recipe: what it counts is what the run would do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bank import load_bank
from pipeline.config import load_recipe
from pipeline.dry_run import describe_run
from pipeline.models.lora_formats import write_lora
from pipeline.places import Places
from pipeline.stages.encode import collect
from pipeline.stages.prompts import plan_prompts
from tests.unit.malformed.good_bank import TO_Q, good_work, lora

KNOWN = {"effect": "snow", "trigger": "<snow_Old1>", "prompt": "<snow_Old1> flakes of old"}


def test_a_student_that_grows_keeps_its_words_in_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it encoded under the words it knows its effects by is not missing."""
    work = good_work(tmp_path)
    (layer,) = lora().values()
    start = tmp_path / "start.safetensors"
    modules = {TO_Q: layer, TO_Q.replace("0", "1"): layer}
    write_lora(start, modules, {"effects": json.dumps([KNOWN])})
    work.recipe["student"] = {"lora": {"rank": 2, "alpha": 2.0, "modules": ["attn.to_q"]}}
    work.recipe["grow"] = {"start_from": str(start)}
    work.save()
    recipe, bank = load_recipe(work.recipe_file), load_bank(work.bank_file)
    effects = tuple(
        replace(e, trigger="<snow_Old1>", caption="flakes of old") if e.name == "snow" else e
        for e in bank.effects
    )
    prompts = plan_prompts(recipe, replace(bank, effects=effects), Places.of(recipe.output)).prompts
    assert {p.effect: p.student for p in prompts}["snow"] == KNOWN["prompt"]
    _, jobs = collect(recipe, bank, prompts)
    encoded = {job.key for job in jobs.values()}
    monkeypatch.setattr("pipeline.dry_run.stored_keys", lambda folder: encoded)
    assert f"encode    0 of {len(jobs)} missing" in describe_run(recipe, bank, "encode")
