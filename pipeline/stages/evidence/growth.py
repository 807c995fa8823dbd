"""Growth: effects added to the main report's finished students, and what that does to the old."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.bank import Bank, load_bank
from pipeline.config import Recipe, vary
from pipeline.controller import Prepared
from pipeline.evaluation.effectbench import Method, adapter_file, standard_methods
from pipeline.evaluation.evidence import Cell
from pipeline.problems import InputError, Problem
from pipeline.stages.evidence.work import Bench, Evidence, thin

OLD, NEW, GENERAL = "old effects", "new effects", "general edits"
BEFORE, AFTER = "student before", "student after"


def growth_report(work: Bench) -> None:
    """New and old effects' scores before and after, for each seed."""
    recipe, old = work.recipe, work.bank
    new = new_bank(work)
    both = joined(old, new)
    names = [effect.name for effect in new.effects]
    prepared = work.prepared(recipe, old, "main")
    whole = work.prepared(vary(recipe, {"effects": None}), both, "growth")
    evidence = Evidence("growth", [], {}, {}, pairs=_pairs())
    _score(work, evidence, recipe, both, whole, _teachers(recipe, whole), "teacher", None, names)
    for seed in recipe.bench.seeds:
        seeded = vary(recipe, {"distill.seed": seed})
        before = work.train(f"student-seed{seed}", seeded, old, prepared.manifest)
        start = {"grow.start_from": str(before.resolve()), "grow.new_effects": names}
        grown = vary(seeded, {"effects": None} | recipe.bench.growth.set | start)
        after = work.train(f"grown-seed{seed}", grown, both, whole.manifest)
        for name, lora in ((BEFORE, before), (AFTER, after)):
            method = standard_methods(recipe, whole.manifest, adapter_file(lora))[2]
            _score(work, evidence, recipe, both, whole, method, name, seed, names)
        evidence.curves[f"grown, seed {seed}"] = thin(work.history(grown, whole.manifest))
        evidence.write(work)


def new_bank(work: Bench) -> Bank:
    """The new effects' bank: the recipe's, or the miniature's own beyond the fifty.

    Raises:
        InputError: no bank where there is no miniature to draw one from, or an effect twice.
    """
    settings, recipe = work.recipe.bench.growth, work.recipe
    folder = work.root / "new_bank" if settings.bank is None else Path(settings.bank)
    if settings.bank is None:
        if recipe.evaluate.truth != "miniature":
            what, remedy = "no bank of new effects", "name one, with the old bank's photographs"
            raise InputError([Problem("recipe", "bench.growth.bank", None, what, remedy)])
        if not (folder / "bank.yaml").exists():
            from pipeline.miniature.bank import write_bank
            from pipeline.miniature.effects import NEW_EFFECTS

            pairs = max((len(work.bank.pairs_of(e.name)) for e in work.bank.effects), default=20)
            write_bank(folder, list(NEW_EFFECTS), pairs=pairs, general=1, sources=1, test=1)
    bank = load_bank(folder, settings.effects)
    known = {effect.name for effect in work.bank.effects}
    what, remedy = "the bank has this effect already", "leave it out of the new ones"
    twice = [e.name for e in bank.effects if e.name in known]
    if twice:
        raise InputError([Problem(str(folder), "effects", name, what, remedy) for name in twice])
    return bank


def joined(old: Bank, new: Bank) -> Bank:
    """The old bank with the new one's effects and pairs; the photographs are the old one's."""
    return replace(old, effects=(*old.effects, *new.effects), pairs=(*old.pairs, *new.pairs))


def _teachers(recipe: Recipe, whole: Prepared) -> Method:
    return standard_methods(recipe, whole.manifest, ("", ""))[1]


def _pairs() -> list[tuple[str, str]]:
    after = [f"{AFTER}, {group}" for group in (NEW, OLD, GENERAL)]
    return [
        (after[0], f"teacher, {NEW}"),
        (after[1], f"{BEFORE}, {OLD}"),
        (after[1], f"teacher, {OLD}"),
        (after[2], f"{BEFORE}, {GENERAL}"),
    ]


def _score(
    work: Bench,
    evidence: Evidence,
    recipe: Recipe,
    bank: Bank,
    prepared: Prepared,
    method: Method,
    name: str,
    seed: int | None,
    new: list[str],
) -> None:
    """A method's cells under another name (its pictures are kept under its own), by group."""
    test = prepared.collection.test
    cells, costs = work.scores(recipe, bank, prepared.manifest, test, [method], seed)
    evidence.cells += [_grouped(cell, name, new) for cell in cells]
    evidence.costs |= costs_by_group(method, costs[method.name], name, new)
    evidence.write(work)


def costs_by_group(
    method: Method, cost: Mapping[str, float], name: str, new: Sequence[str]
) -> dict[str, dict[str, float]]:
    """A method's costs for old and new effects: of a bank of teachers each group needs its own."""
    found = {}
    for group in (OLD, NEW):
        own = {e: file for e, file in method.adapters.items() if (e in new) == (group == NEW)}
        size = {"bytes": replace(method, adapters=own).shipped_bytes}
        found[f"{name}, {group}"] = dict(cost) | size
    return found


def _grouped(cell: Cell, name: str, new: list[str]) -> Cell:
    group = GENERAL if cell.effect.startswith("general:") else NEW if cell.effect in new else OLD
    return replace(cell, method=f"{name}, {group}")
