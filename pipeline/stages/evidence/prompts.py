"""Prompts: what triggers are worth, and whether choosing orthogonal ones is worth the trouble.

Three students an ablation's size that differ in their triggers alone. Two of them are rows of the
ablation, trained once for both reports.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.bank import Bank
from pipeline.config import Recipe, vary
from pipeline.controller import Prepared
from pipeline.evaluation.orthogonality import cosines
from pipeline.evaluation.report import bleed
from pipeline.places import Places
from pipeline.stages.evidence.work import (
    Bench,
    Evidence,
    named,
    part_of,
    plain,
    score,
    student_method,
)
from pipeline.stages.evidence.work import thin as thinned
from pipeline.stages.wording import directions

RANDOM, ORTHOGONAL, NONE = "random triggers", "orthogonal triggers", "no triggers"
VARIANTS: dict[str, dict[str, Any]] = {
    RANDOM: {},
    ORTHOGONAL: {"prompts.triggers": "orthogonal"},
    NONE: {"prompts.triggers": "none"},
}


def prompts_report(work: Bench) -> None:
    """Cosines of each way to prompt, and the students that come of it, for each seed."""
    settings = work.recipe.bench
    bank = part_of(work.bank, settings.ablation_effects)
    names = [effect.name for effect in bank.effects]
    common = settings.ablation_set | named(bank, work.bank)
    pairs = [(RANDOM, NONE), (ORTHOGONAL, NONE), (ORTHOGONAL, RANDOM)]
    evidence = Evidence("prompts", [], {}, {}, pairs=pairs)
    matrices: dict[str, list[Any]] = {}
    evidence.extra = {"effects": names, "cosines": {}, "bleed": {}}
    for seed in settings.seeds:
        for name, switches in VARIANTS.items():
            recipe = vary(work.recipe, common | switches | {"distill.seed": seed})
            prepared = work.prepared(recipe, bank, plain(f"prompts {name}"))
            if name not in evidence.extra["cosines"]:
                evidence.extra["cosines"][name] = _cosines(work, recipe, bank, prepared)
            lora = work.train(plain(f"{name}-seed{seed}"), recipe, bank, prepared.manifest)
            method = student_method(recipe, prepared.manifest, lora, name)
            test = prepared.collection.test
            found = work.evaluated(recipe, bank, prepared.manifest, test, [method])
            matrices.setdefault(name, []).append(bleed(found.scores, name, names))
            evidence.extra["bleed"][name] = _rounded(np.mean(matrices[name], axis=0))
            history = work.history(recipe, prepared.manifest)
            evidence.curves[f"{name}, seed {seed}"] = thinned(history)
            score(work, evidence, recipe, bank, prepared, [method], seed)


def _cosines(
    work: Bench, recipe: Recipe, bank: Bank, prepared: Prepared
) -> dict[str, list[list[float]]]:
    """Cosine matrices of the triggers, where there are any, and of the whole student prompts."""
    triggers = [p.trigger for p in prepared.prompts if p.trigger]
    whole = [p.student for p in prepared.prompts]
    found = directions(recipe, bank, [*triggers, *whole], Places(work.root), work.ray)
    matrices = {"prompts": _rounded(cosines(found[len(triggers) :]))}
    if triggers:
        matrices["triggers"] = _rounded(cosines(found[: len(triggers)]))
    return matrices


def _rounded(matrix: Any) -> list[list[float]]:
    rows: Sequence[Sequence[float]] = np.asarray(matrix).tolist()
    return [[round(value, 4) for value in row] for row in rows]
