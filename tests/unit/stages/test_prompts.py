"""prompts.json: made, asked for once, and left as a person edited it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.bank import Bank, Effect
from pipeline.config import Recipe
from pipeline.places import Places
from pipeline.problems import InputError
from pipeline.stages.prompts import plan_prompts, write_prompts

SNOW = Effect("snow", "make it snow", None, "general", 1.0, "white flakes", None, None)


def case(folder: Path, **prompts: Any) -> tuple[Recipe, Bank, Places]:
    data = {"name": "t", "bank": "b", "output": str(folder), "prompts": prompts}
    bank = Bank(folder, (SNOW, replace(SNOW, name="rain", description="")), (), (), (), ())
    return Recipe.model_validate(data), bank, Places(folder)


def never() -> None:
    raise AssertionError("nothing is to be asked")


def test_offline_the_description_is_the_caption_and_edits_stay(tmp_path: Path) -> None:
    recipe, bank, places = case(tmp_path)
    first = write_prompts(recipe, bank, places, never)
    assert [p.caption for p in first] == ["white flakes", "make it snow"]
    assert write_prompts(recipe, bank, places, never) == first
    rows = json.loads(places.prompts.read_bytes())
    rows[0]["caption"] = "soft flakes over all"
    places.prompts.write_text(json.dumps(rows))
    for _ in range(2):
        edited = write_prompts(recipe, bank, places, never)
        assert edited[0].caption == "soft flakes over all"
        assert edited[1] == first[1]
    rows[0]["caption"] = f"with {rows[1]['trigger']} in it"
    places.prompts.write_text(json.dumps(rows))
    with pytest.raises(InputError, match="another effect's trigger"):
        write_prompts(recipe, bank, places, never)


def test_what_is_to_be_asked_is_what_has_no_caption(tmp_path: Path) -> None:
    endpoint = {"url": "http://127.0.0.1:1/v1", "model": "m"}
    recipe, bank, places = case(tmp_path, endpoint=endpoint)
    own = replace(bank, effects=(replace(SNOW, caption="mine"), bank.effects[1]))
    plan = plan_prompts(recipe, own, places)
    assert [json.loads(row["rules"])["effect"] for row in plan.missing] == ["rain"]
    places.captions.mkdir(parents=True)
    value = {"value": "A rain of grey drops over the scene.", "usage": {}}
    (places.captions / f"{plan.missing[0]['key']}.json").write_text(json.dumps(value))
    prompts = write_prompts(recipe, own, places, never)
    assert [p.caption for p in prompts] == ["mine", value["value"]]
    assert json.loads(places.prompts_cost.read_bytes())["answers"] == 1
