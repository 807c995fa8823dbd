"""Triggers: unique, stable, one word."""

import re
from dataclasses import replace

from pipeline.bank import Effect
from pipeline.config import PromptSettings
from pipeline.prompting import make_prompts, make_trigger

SNOW = Effect(
    name="snow",
    prompt="make it snow",
    adapter=None,
    category="general",
    weight=1.0,
    description="snow falls",
    trigger=None,
    caption=None,
)


def test_triggers_are_unique_words() -> None:
    triggers = [make_trigger(f"effect{i}", 8, seed=0) for i in range(500)]
    assert all(re.fullmatch(r"<effect\d+_[A-Za-z0-9]{8}>", t) for t in triggers)
    # The random part alone tells them apart, too: names can share words, triggers should not.
    assert len({t.rsplit("_", 1)[1] for t in triggers}) == 500


def test_a_trigger_is_a_function_of_effect_and_seed() -> None:
    rain, fog = replace(SNOW, name="rain"), replace(SNOW, name="fog")
    settings = PromptSettings()
    alone = make_prompts((SNOW,), settings, seed=5)[0]
    among = make_prompts((rain, SNOW, fog), settings, seed=5)
    assert [p.effect for p in among] == ["rain", "snow", "fog"]
    assert among[1] == alone
    assert make_prompts((SNOW,), settings, seed=6)[0].trigger != alone.trigger
    assert len(make_trigger("snow", 12, 0)) == len("<snow_>") + 12


def test_the_student_reads_trigger_and_caption_the_teacher_its_own_prompt() -> None:
    settings = PromptSettings()
    own = replace(SNOW, trigger="<mine>", caption="soft flakes")
    told, described, bare = make_prompts(
        (own, SNOW, replace(SNOW, description="")), settings, seed=0
    )
    assert (told.student, told.teacher) == ("<mine> soft flakes", "make it snow")
    assert described.student == f"{described.trigger} snow falls"
    assert bare.student == f"{bare.trigger} make it snow"


def test_without_triggers_the_student_reads_the_teachers_prompt() -> None:
    own = replace(SNOW, trigger="<mine>", caption="soft flakes")
    (made,) = make_prompts((own,), PromptSettings(triggers="none"), seed=0)
    assert made.trigger == ""
    assert made.student == made.teacher == "make it snow"
