"""Grow: add effects to a finished student, rehearsing those that it knows (``distill --from``)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.bank import Bank
from pipeline.config import Recipe
from pipeline.models.lora_formats import content_hash, lora_at_hand, read_lora, transformer_shapes
from pipeline.problems import InputError, Problem
from pipeline.storage import content_key, sha256_file
from pipeline.types import Manifest

FIELD = "grow.start_from"
FAKE_FILE = "fake.safetensors"


@dataclass(frozen=True)
class Start:
    """What a student begins with.

    lora: a file, or an export's folder; fake: the fake score's tensors, where its checkpoint is
    still there; prompts: by effect the (trigger, whole prompt) that the export says it knows.
    """

    lora: Path
    fake: Path | None
    prompts: dict[str, tuple[str, str]]

    @property
    def key(self) -> str:
        """Names its content."""
        return content_key(content_hash(self.lora), sha256_file(self.fake) if self.fake else None)


def start_of(recipe: Recipe) -> Start | None:
    """The recipe's start, or None.

    Raises:
        InputError: there is no such LoRA, it cannot be read, or it is not of the student's shape.
    """
    if recipe.grow.start_from is None:
        return None
    path = lora_at_hand(recipe.grow.start_from)
    if not path.exists():
        what, remedy = "no such file or folder", "name an export's folder or a LoRA file"
        raise InputError([Problem("recipe", FIELD, str(path), what, remedy)])
    lora = read_lora(path)
    problems = _unlike(recipe, {name: module.rank for name, module in lora.modules.items()})
    if problems:
        raise InputError(problems)
    return Start(lora.path, _fake_beside(lora.path), _prompts(lora.metadata.get("effects", "[]")))


def new_effects(recipe: Recipe, effects: Sequence[str]) -> set[str]:
    """Those of the effects that the start does not know.

    Raises:
        InputError: a name that is no effect, or nothing says what the start knows.
    """
    start, named = start_of(recipe), recipe.grow.new_effects
    assert start is not None, "a student without a start has no old effects"
    if named is not None:
        what, remedy = "no such effect in the bank", f"the effects are {', '.join(effects)}"
        problems = [
            Problem("recipe", "grow.new_effects", name, what, remedy)
            for name in named
            if name not in effects
        ]
        if problems:
            raise InputError(problems)
        return set(named)
    if not start.prompts:
        what, remedy = "the file does not say which effects it knows", "set grow.new_effects"
        raise InputError([Problem("recipe", FIELD, recipe.grow.start_from, what, remedy)])
    return set(effects) - set(start.prompts)


def effect_weights(recipe: Recipe, manifest: Manifest) -> tuple[float, ...]:
    """The odds of each effect: the bank's own or, with a start, new ones against old ones."""
    weights = {e.name: e.weight for e in manifest.effects}
    if recipe.grow.start_from is None:
        return tuple(weights.values())
    new = new_effects(recipe, list(weights))
    if not new or new == set(weights):
        return tuple(weights.values())
    share, odds = recipe.grow.new_share, []
    of_new = sum(weight for name, weight in weights.items() if name in new)
    of_old = sum(weights.values()) - of_new
    for name, weight in weights.items():
        odds.append(weight * (share / of_new if name in new else (1 - share) / of_old))
    return tuple(odds)


def known_by(start: Start, bank: Bank) -> Bank:
    """The bank with the words by which the start knows its effects."""
    effects = []
    for effect in bank.effects:
        trigger, prompt = start.prompts.get(effect.name, ("", ""))
        if trigger:
            caption = prompt.removeprefix(trigger).strip()
            effect = replace(effect, trigger=trigger, caption=caption or None)
        effects.append(effect)
    return replace(bank, effects=tuple(effects))


def _prompts(text: str) -> dict[str, tuple[str, str]]:
    """What an export's weights say of their effects; nothing where they were written by others."""
    try:
        entries = json.loads(text)
        return {e["effect"]: (str(e["trigger"]), str(e["prompt"])) for e in entries}
    except (ValueError, TypeError, KeyError):
        return {}


def _fake_beside(lora: Path) -> Path | None:
    """The fake score of the run whose finished student this is, if its checkpoint is there."""
    from actors.run_place import RunPlace

    checkpoint = RunPlace(lora.parent.parent, lora.parent.name).latest_checkpoint()
    if checkpoint is None or not (checkpoint / FAKE_FILE).exists():
        return None
    return checkpoint / FAKE_FILE


def _unlike(recipe: Recipe, ranks: dict[str, int]) -> list[Problem]:
    """Why the student cannot begin with a LoRA of these modules and ranks."""
    lora = recipe.student.lora
    endings = tuple(f".{module}" for module in lora.modules)
    wanted = {name for name in transformer_shapes(recipe.model.path) if name.endswith(endings)}
    problems = []
    if wanted != set(ranks):
        odd = sorted(wanted ^ set(ranks))[0]
        what = f"not on the student's modules ({odd} is on one side only)"
        problems.append(
            Problem("recipe", FIELD, recipe.grow.start_from, what, "set student.lora.modules alike")
        )
    if wrong := sorted(set(ranks.values()) - {lora.rank}):
        what = f"of rank {wrong[0]}, the student is of rank {lora.rank}"
        remedy = f"set student.lora.rank to {wrong[0]}"
        problems.append(Problem("recipe", FIELD, recipe.grow.start_from, what, remedy))
    return problems
