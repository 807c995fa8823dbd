"""Prompts: one file, ``prompts.json``, with every effect's trigger, caption and both prompts."""

import json
from dataclasses import asdict
from pathlib import Path

from pipeline.bank import Bank
from pipeline.config import Recipe
from pipeline.prompting import EffectPrompts, make_prompts
from pipeline.storage import write_atomic


def write_prompts(recipe: Recipe, bank: Bank, path: Path) -> list[EffectPrompts]:
    """Make all prompts and write them where people can read them."""
    prompts = make_prompts(bank.effects, recipe.prompts, recipe.seed)
    rows = [asdict(p) | {"student": p.student} for p in prompts]
    write_atomic(path, (json.dumps(rows, indent=2, ensure_ascii=False) + "\n").encode())
    return prompts
