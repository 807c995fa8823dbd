"""Prompts: one file, ``prompts.json``, with every effect's trigger, caption and both prompts.

Captions are the bank's own, or a vision-language model's where the recipe names an endpoint. The
file can be edited: a trigger or caption that a person changed stays as it is.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.bank import Bank, Effect
from pipeline.captions import (
    VERSION,
    CaptionRules,
    ask_caption,
    caption_problem,
    caption_row,
    drawn,
)
from pipeline.config import Recipe
from pipeline.endpoint import Usage
from pipeline.places import Places
from pipeline.problems import InputError, Problem
from pipeline.prompting import EffectPrompts, make_prompts
from pipeline.stages.asking import answer, ask, cost_lines
from pipeline.storage import content_key, sha256_file, write_atomic

EDITED = "by hand"


@dataclass(frozen=True)
class PromptPlan:
    """Prompts as far as they are known, and the questions whose answers are still missing."""

    prompts: list[EffectPrompts]
    edited: frozenset[str]
    questions: dict[str, dict[str, Any]]
    missing: list[dict[str, Any]]


def plan_prompts(recipe: Recipe, bank: Bank, places: Places) -> PromptPlan:
    """What the prompts are and what is to be asked for them; nothing is written.

    Raises:
        InputError: prompts.json was edited into something that cannot be used.
    """
    prompts = make_prompts(bank.effects, recipe.prompts, recipe.seed)
    rows = {} if recipe.prompts.triggers == "none" else _earlier(places.prompts)
    questions = _questions(recipe, bank, prompts, rows)
    captions = {}
    for effect, row in questions.items():
        found = answer(places.captions, row["key"])
        # Triggers may have changed since: what was good then is checked against those of now.
        if found is not None and caption_problem(str(found.value), _rules(row)) is None:
            captions[effect] = str(found.value)
    missing = [row for effect, row in questions.items() if effect not in captions]
    made = [replace(p, caption=captions.get(p.effect, p.caption)) for p in prompts]
    edited, names = _with_edits(places.prompts, made, rows, recipe.prompts.language)
    return PromptPlan(edited, names, questions, missing)


def write_prompts(
    recipe: Recipe, bank: Bank, places: Places, ray: Callable[[], None]
) -> list[EffectPrompts]:
    """Make all prompts and write them where people can read them; ask only for what is missing.

    Raises:
        InputError: the endpoint refuses, or gave no usable caption for some effects; those it
            did give are kept, so that running again asks for the others alone.
    """
    plan = plan_prompts(recipe, bank, places)
    failed: dict[str, str] = {}
    spent = Usage()
    if plan.missing:
        assert recipe.prompts.endpoint is not None
        ray()
        asked = ask(plan.missing, ask_caption, recipe.prompts.endpoint, places.captions, "prompts")
        by_key = {row["key"]: effect for effect, row in plan.questions.items()}
        failed = {by_key[key]: error for key, error in asked.unanswered.items()}
        spent = asked.usage
        plan = plan_prompts(recipe, bank, places)
    if plan.questions:
        _write_cost(recipe, plan, places, failed, spent)
    if failed:
        remedy = "run again to ask for these alone, or give captions in bank.yaml"
        file = str(bank.folder / "bank.yaml")
        raise InputError(
            [
                Problem(file, f"effects.{name}.caption", None, f"no usable caption ({why})", remedy)
                for name, why in failed.items()
            ]
        )
    rows = [
        {
            "effect": p.effect,
            "trigger": p.trigger,
            "caption": p.caption,
            "teacher": p.teacher,
            "student": p.student,
            "made": EDITED if p.effect in plan.edited else _mark(p.trigger, p.caption),
        }
        for p in plan.prompts
    ]
    write_atomic(places.prompts, (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode())
    return plan.prompts


def _questions(
    recipe: Recipe,
    bank: Bank,
    prompts: Sequence[EffectPrompts],
    rows: dict[str, dict[str, str]],
) -> dict[str, dict[str, Any]]:
    """By effect, what the endpoint is asked: of effects without a caption of their own."""
    settings = recipe.prompts
    if settings.endpoint is None or settings.triggers == "none":
        return {}
    triggers = tuple(p.trigger for p in prompts)
    questions = {}
    for effect in bank.effects:
        if effect.caption is not None or _was_edited(rows.get(effect.name)):
            continue
        pairs = bank.pairs_of(effect.name)
        shown = [pairs[i] for i in drawn(settings.pairs, len(pairs), recipe.seed, effect.name)]
        rules = CaptionRules(effect.name, effect.prompt, triggers, settings.language)
        key = _key(recipe, effect, [p for pair in shown for p in (*pair.sources, pair.target)])
        pictures = [(pair.sources, pair.target) for pair in shown]
        questions[effect.name] = caption_row(key, rules, effect.description, pictures, recipe.seed)
    return questions


def _key(recipe: Recipe, effect: Effect, pictures: Sequence[Path]) -> str:
    endpoint = recipe.prompts.endpoint
    assert endpoint is not None
    said = [effect.name, effect.prompt, effect.description, recipe.prompts.language]
    shas = [sha256_file(path) for path in pictures]
    return content_key("caption", VERSION, endpoint.model, said, shas, recipe.seed)


def _rules(row: dict[str, Any]) -> CaptionRules:
    data = json.loads(row["rules"])
    return CaptionRules(**{**data, "triggers": tuple(data["triggers"])})


def _earlier(path: Path) -> dict[str, dict[str, str]]:
    """The rows of an earlier prompts.json, by effect.

    Raises:
        InputError: it was edited into something else than rows of text.
    """
    if not path.exists():
        return {}
    remedy = "correct it, or remove it: it is made anew"
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        texts = [{str(k): v for k, v in row.items()} for row in rows]
        if not all(isinstance(v, str) for row in texts for v in row.values()):
            raise ValueError("a value that is no text")
        return {row["effect"]: row for row in texts}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"not a list of prompts ({error})"
        raise InputError([Problem(str(path), "", None, what, remedy)]) from None


def _was_edited(row: dict[str, str] | None) -> bool:
    """Whether a person changed a row. One without a mark is from before there were marks."""
    if row is None or "made" not in row:
        return False
    return row["made"] in (EDITED, "") or row["made"] != _mark(
        row.get("trigger", ""), row.get("caption", "")
    )


def _with_edits(
    path: Path, made: list[EffectPrompts], rows: dict[str, dict[str, str]], language: str
) -> tuple[list[EffectPrompts], frozenset[str]]:
    """Prompts with what people changed in the file, checked as a model's answer would be."""
    edited = {p.effect for p in made if _was_edited(rows.get(p.effect))}
    prompts = [
        replace(
            p, trigger=rows[p.effect].get("trigger", ""), caption=rows[p.effect].get("caption", "")
        )
        if p.effect in edited
        else p
        for p in made
    ]
    problems = []
    for p in prompts:
        others = tuple(o.trigger for o in prompts if o.effect != p.effect)
        what = None
        if p.effect in edited and p.caption.strip() == "":
            what = "the caption is empty"
        elif p.effect in edited and (not p.trigger or p.trigger in others or " " in p.trigger):
            what = "the trigger must be one word, and no other effect's"
        elif p.effect in edited and any(other and other in p.caption for other in others):
            what = "the caption holds another effect's trigger"
        if what is not None:
            remedy = "correct it, or remove the row: it is made anew"
            problems.append(Problem(str(path), p.effect, None, what, remedy))
    if problems:
        raise InputError(problems)
    return prompts, frozenset(edited)


def _mark(trigger: str, caption: str) -> str:
    return content_key("prompts", trigger, caption)[:12]


def _write_cost(
    recipe: Recipe, plan: PromptPlan, places: Places, failed: dict[str, str], spent: Usage
) -> None:
    """What the captions took, all asks so far, for the report."""
    endpoint = recipe.prompts.endpoint
    assert endpoint is not None
    found = [answer(places.captions, row["key"]) for row in plan.questions.values()]
    total = sum((each.usage for each in found if each is not None), Usage())
    lines = cost_lines(total, sum(each is not None for each in found), endpoint)
    lines += [f"No caption for {name}: {why}." for name, why in failed.items()]
    details = {
        "answers": sum(each is not None for each in found),
        "usage": total.to_dict(),
        "last_run": spent.to_dict(),
        "failed": failed,
        "edited": sorted(plan.edited),
        "text": " ".join(lines),
    }
    write_atomic(places.prompts_cost, (json.dumps(details, indent=2) + "\n").encode())
