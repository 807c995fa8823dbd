"""Everything that can be wrong with a run's input, found before any work, in one report."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from pipeline.addresses import address_problems
from pipeline.bank import Bank, bank_file, inspect_bank
from pipeline.config import LoraSettings, Recipe, inspect_recipe
from pipeline.images import open_image
from pipeline.miniature.effects import KNOWN
from pipeline.mirror import local_path
from pipeline.model_files import base_problems, judge_problems
from pipeline.models.families import FAMILIES, family_of
from pipeline.models.local import local_model
from pipeline.models.lora_formats import lora_problems, read_lora, transformer_shapes
from pipeline.places import Places
from pipeline.problems import InputError, Problem
from pipeline.stages.grow import FIELD, new_effects

Shapes = dict[str, tuple[int, int]]


def validate(
    recipe_path: str | Path, overrides: Sequence[str] = (), plan_only: bool = False
) -> tuple[Recipe, Bank]:
    """Check a recipe, its model folder, its bank and every file of it; nothing is written.

    Adapters and images are read whole, so that a run does not end hours later on a broken one.
    plan_only: the base may be its configurations alone, on a machine without its weights.

    Raises:
        InputError: all that is wrong, in one report.
    """
    recipe, problems = inspect_recipe(recipe_path, overrides)
    if recipe is None:
        raise InputError(problems)
    file = str(recipe_path)
    # A field that is itself wrong reads as a default: nothing is to be said about that.
    wrong = {p.field for p in problems}
    addresses = [p for p in address_problems(file, recipe) if p.field.split(".")[0] not in wrong]
    problems += addresses
    wrong |= {p.field for p in addresses}
    shapes = None
    if "model" not in wrong and "model.path" not in wrong:
        shapes, found = _check_model(file, recipe, plan_only)
        problems += found
    if not plan_only and not any(field.startswith("evaluate") for field in wrong):
        problems += judge_problems(file, recipe.evaluate.judges)
    if "output" not in wrong:
        problems += _check_output(file, recipe.output)
        if not any(field.split(".")[0] == "grow" for field in wrong):
            problems += _check_replaced(file, recipe)
    bank = None
    if "bank" not in wrong:
        effects = None if any(f.split(".")[0] == "effects" for f in wrong) else recipe.effects
        inspection = inspect_bank(recipe.bank, effects)
        bank = inspection.bank
        problems += inspection.problems
        if bank is not None:
            problems += _check_uses(file, recipe, bank, inspection.broken)
            if not wrong & {"model", "model.path"}:
                problems += _check_sources(recipe, bank)
            if shapes is not None and not any(field.split(".")[0] == "grow" for field in wrong):
                problems += _check_start(recipe, bank)
            problems += _check_adapters(bank, shapes)
            problems += _check_images(bank)
    if bank is None or problems:
        raise InputError(problems)
    return recipe, bank


def _check_model(file: str, recipe: Recipe, plan_only: bool) -> tuple[Shapes | None, list[Problem]]:
    """The transformer's layers, and what is wrong with the folder or the modules asked of it."""
    try:
        folder = local_model(recipe.model.path)
    except InputError as error:
        return None, error.problems
    index = folder / "model_index.json"
    remedy = f"give a diffusers folder of one of {', '.join(FAMILIES)}"
    if not folder.is_dir():
        what = "no such folder"
        return None, [Problem(file, "model.path", recipe.model.path, what, remedy)]
    if not index.is_file():
        what = "no model_index.json in the folder"
        return None, [Problem(file, "model.path", recipe.model.path, what, remedy)]
    problems = list(_check_quantize(file, recipe))
    kind = None
    try:
        found = json.loads(index.read_text(encoding="utf-8"))
        kind = found.get("_class_name") if isinstance(found, dict) else None
        if kind not in FAMILIES:
            what = "not a pipeline of a known family"
            problems.append(Problem(str(index), "_class_name", kind, what, remedy))
    except (OSError, ValueError, RecursionError) as error:
        what = f"cannot be read as JSON ({error})"
        problems.append(Problem(str(index), "", None, what, remedy))
    try:
        shapes = transformer_shapes(folder)
    except InputError as error:
        return None, problems + error.problems
    for place, lora in (("teach.lora", recipe.teach.lora), ("student.lora", recipe.student.lora)):
        problems += _check_modules(file, place, lora, shapes)
    if kind in FAMILIES and not plan_only:
        problems += base_problems(folder, FAMILIES[kind])
    return shapes, problems


def _check_quantize(file: str, recipe: Recipe) -> Iterable[Problem]:
    kind = recipe.model.quantize
    if kind is None:
        return
    if find_spec("torchao") is None:
        what, remedy = "needs torchao", "pip install 'collectionlora[quantize]'"
        yield Problem(file, "model.quantize", kind, what, remedy)


def _check_modules(file: str, place: str, lora: LoraSettings, shapes: Shapes) -> Iterable[Problem]:
    blocks = re.compile(r"(?:single_)?transformer_blocks\.0\.(.+)")
    inner = list(dict.fromkeys(match[1] for match in map(blocks.fullmatch, shapes) if match))
    for i, module in enumerate(lora.modules):
        if module not in inner:
            what = "a block of the model has no such linear layer"
            remedy = f"choose from {', '.join(inner)}"
            yield Problem(file, f"{place}.modules.{i}", module, what, remedy)


def _check_output(file: str, output: str) -> list[Problem]:
    path = local_path(output)
    existing = next((p for p in (path, *path.parents) if p.exists()), Path())
    if existing.is_dir():
        return []
    what = f"{existing} is not a folder"
    return [Problem(file, "output", output, what, "name a new folder or an earlier output")]


def _check_uses(file: str, recipe: Recipe, bank: Bank, broken: frozenset[str]) -> Iterable[Problem]:
    """What this recipe needs and the bank lacks; of ``broken`` parts enough has been said."""
    bank_path = bank_file(recipe.bank)

    def lacks(place: str, what: str, remedy: str) -> Problem:
        return Problem(str(bank_path), place, None, what, remedy)

    if not bank.general and recipe.distill.p_switch < 1 and "general" not in broken:
        p_switch = recipe.distill.p_switch
        what = f"no rows for the general stream, which distill.p_switch {p_switch} draws from"
        yield lacks("general", what, "add general rows, or set distill.p_switch to 1")
    elif not bank.general and recipe.warm_start and recipe.warm_start.general:
        what = "no rows for the general stream, of which warm_start.general shows some each step"
        yield lacks("general", what, "add general rows, or set warm_start.general to 0")
    if not bank.photographs and not broken & {"photographs", "pairs"}:
        for effect in bank.effects:
            if not bank.pairs_of(effect.name):
                what = f"effect {effect.name!r} has no source photographs: no pairs, no folder"
                yield lacks("photographs", what, "add a folder of photographs, or pairs")
    if recipe.evaluate.truth == "miniature":
        for effect in bank.effects:
            if effect.name not in KNOWN:
                what = f"the miniature does not know effect {effect.name!r}"
                remedy = "set evaluate.truth to pairs, or take the miniature's effects only"
                yield Problem(file, "evaluate.truth", "miniature", what, remedy)
    if not bank.test and "test" not in broken:
        what = "no held-out photographs, which the evaluation edits"
        yield lacks("test", what, "add a folder of photographs that nothing is trained on")


def _check_sources(recipe: Recipe, bank: Bank) -> Iterable[Problem]:
    """Rows of more pictures than the model's pipeline takes."""
    try:
        family = family_of(recipe.model.path)
    except ValueError:
        return
    rows = [(f"the pairs of effect {pair.effect!r}", len(pair.sources)) for pair in bank.pairs]
    rows += [("the general rows", len(row.images)) for row in bank.general]
    most: dict[str, int] = {}
    for whose, count in rows:
        most[whose] = max(count, most.get(whose, 0))
    for whose, count in most.items():
        if count > family.max_sources:
            what = f"{whose} have up to {count} source pictures"
            field = "general" if whose.startswith("the general") else "pairs"
            remedy = f"{family.pipeline} takes {family.max_sources}: leave these rows out"
            yield Problem(str(bank_file(recipe.bank)), field, count, what, remedy)


def _check_start(recipe: Recipe, bank: Bank) -> list[Problem]:
    """What is wrong with the finished student that this one begins with."""
    if recipe.grow.start_from is None:
        return []
    try:
        new_effects(recipe, [effect.name for effect in bank.effects])
    except InputError as error:
        return error.problems
    return []


def _check_replaced(file: str, recipe: Recipe) -> list[Problem]:
    """Whether the run's own export would take the place of what the student begins with.

    That is in what names the run: each repeat would be another run, on top of the last one.
    """
    text = recipe.grow.start_from
    if text is None:
        return []
    try:
        start = local_path(text).resolve()
    except InputError:
        return []  # no place at all: whoever reads it says so
    if not start.is_relative_to(Places.of(recipe.output).student.resolve()):
        return []
    what = "the run would replace its own start"
    remedy = "set another output (--set output=runs/grown), or start from a copy of it"
    return [Problem(file, FIELD, text, what, remedy)]


def _check_adapters(bank: Bank, shapes: Shapes | None) -> Iterable[Problem]:
    # One at a time: at full size each is gigabytes.
    for path in dict.fromkeys(e.adapter for e in bank.effects if e.adapter is not None):
        try:
            lora = read_lora(path, shapes)
        except InputError as error:
            yield from error.problems
            continue
        if shapes is not None:
            yield from lora_problems(lora, shapes)


def _check_images(bank: Bank) -> list[Problem]:
    """Every image decoded once, on a few threads; no held-out photograph is trained on."""
    training = [image for pair in bank.pairs for image in (*pair.sources, pair.target)]
    training += [image for row in bank.general for image in row.images]
    training += bank.photographs
    paths = list(dict.fromkeys([*training, *bank.test]))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        checked = dict(zip(paths, pool.map(_check_image, paths), strict=True))
    problems = [problem for _, found in checked.values() for problem in found]
    trained = {checked[path][0]: path for path in training}
    for path in bank.test:
        twin = trained.get(checked[path][0])
        if twin is not None and not checked[path][1]:
            what = f"a held-out photograph that is also trained on ({twin})"
            remedy = "remove one of them: scores on it would not be held out"
            problems.append(Problem(str(path), "content", None, what, remedy))
    return problems


def _check_image(path: Path) -> tuple[str, list[Problem]]:
    try:
        open_image(path)
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest(), []
    except InputError as error:
        return "", error.problems
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        return "", [Problem(str(path), "content", None, what, "correct the file's permissions")]
