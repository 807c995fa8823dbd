"""Generality: instructions that are no effect of the bank, and photographs never trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.bank import Bank
from pipeline.config import Recipe, vary
from pipeline.evaluation.effectbench import Method, TestSource, adapter_file, standard_methods
from pipeline.problems import InputError, Problem
from pipeline.stages.evidence.work import Bench, Evidence
from pipeline.types import Manifest

UNSEEN, TRAINED = "unseen", "trained on"


def generality_report(work: Bench) -> None:
    """Base and students on general edits; teachers and students on photographs of either kind."""
    recipe, bank = work.recipe, work.bank
    prepared = work.prepared(recipe, bank, "main")
    seen = replace(bank, test=trained_photographs(recipe, bank))
    tests = {
        UNSEEN: (bank, prepared.collection.test),
        TRAINED: (seen, work.prepared(recipe, seen, "trained-photographs").collection.test),
    }
    pairs = [(f"{m}, {UNSEEN}", f"{m}, {TRAINED}") for m in ("student", "teacher")]
    evidence = Evidence("generality", [], {}, {}, pairs=[("student", "base"), *pairs])
    base, teacher, _ = standard_methods(recipe, prepared.manifest, ("", ""))
    manifest = prepared.manifest
    _both(work, evidence, recipe, manifest, tests, teacher, base, None)
    for seed in recipe.bench.seeds:
        seeded = vary(recipe, {"distill.seed": seed})
        lora = work.train(f"student-seed{seed}", seeded, bank, prepared.manifest)
        student = standard_methods(recipe, prepared.manifest, adapter_file(lora))[2]
        _both(work, evidence, recipe, manifest, tests, student, student, seed)


def trained_photographs(recipe: Recipe, bank: Bank) -> tuple[Path, ...]:
    """Photographs that students learnt every effect on, as many as are held out.

    Of the bank's unlabelled ones, those that each effect's targets reach; where they reach none,
    the sources of the first effect's pairs.

    Raises:
        InputError: an effect edits several pictures at once, which no photograph stands for.
    """
    count = recipe.evaluate.photographs
    if any(len(pair.sources) > 1 for pair in bank.pairs):
        what, remedy = "effects of several source pictures", "leave out the report on generality"
        raise InputError([Problem(str(bank.folder), "pairs", None, what, remedy)])
    most = max(len(bank.pairs_of(effect.name)) for effect in bank.effects)
    reached = bank.photographs[: max(0, recipe.targets.sources - most)]
    if not reached:
        first = bank.pairs_of(bank.effects[0].name)[: recipe.targets.sources]
        reached = tuple(pair.sources[0] for pair in first)
    return tuple(reached[:count])


def _both(
    work: Bench,
    evidence: Evidence,
    recipe: Recipe,
    manifest: Manifest,
    tests: Mapping[str, tuple[Bank, Sequence[TestSource]]],
    method: Method,
    general: Method,
    seed: int | None,
) -> None:
    """A method on photographs of either kind, and one (the same or another) on general edits."""
    bank, held_out = tests[UNSEEN]
    asked = work.asked(recipe, bank, held_out, [general])
    for kind, (bank, test) in tests.items():
        cells, costs = work.effects(recipe, bank, manifest, test, [method], seed, asked.rows)
        evidence.cells += [replace(c, method=f"{c.method}, {kind}") for c in cells]
        evidence.costs |= {f"{name}, {kind}": cost for name, cost in costs.items()}
        if kind == UNSEEN:
            evidence.cells += work.answered(asked, seed)
        evidence.write(work)
