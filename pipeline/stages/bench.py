"""Bench: the evidence. Trains every contender through the run's own stages and scores all alike.

Every run is resumable (a finished student is found under its key, a cut one goes on from its
checkpoint) and every picture and score is cached by content, so a bench may be stopped at any
moment and run in pieces. A report is written anew after each seed, from what there is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from actors.session import ray_session
from pipeline.bank import Bank
from pipeline.config import Recipe, vary
from pipeline.config_reports import AblationRow
from pipeline.controller import Prepared
from pipeline.evaluation.effectbench import Method, adapter_file, standard_methods
from pipeline.places import Places
from pipeline.problems import InputError, Problem
from pipeline.stages.contenders import (
    cascade,
    everyone,
    few_steps,
    joint_loras,
    many_steps,
    stacked,
    untrained_contenders,
    wants_general,
)
from pipeline.stages.evaluate import families_of
from pipeline.stages.evidence.composition import composition_report, pairs_to_compose
from pipeline.stages.evidence.deployment import deployment_report
from pipeline.stages.evidence.growth import growth_report, new_bank
from pipeline.stages.evidence.photographs import generality_report, trained_photographs
from pipeline.stages.evidence.prompts import prompts_report
from pipeline.stages.evidence.publishing import publish_evidence
from pipeline.stages.evidence.work import (
    Bench,
    Evidence,
    folder_of,
    named,
    part_of,
    plain,
    score,
    student_method,
    thin,
)
from pipeline.types import Manifest

# The paper's ablation (table 3), a row a variant: what is switched off against the whole method.
NO_AOP = {"prompts.triggers": "none"}
NO_TS = {"distill.losses.dmd_ts": 0.0}
# A warm start is trajectory anchoring, too.
NO_TA = {
    "distill.losses.ta_fm": 0.0,
    "distill.ta_fm_scale": None,
    "distill.warm_start": None,
}
NO_PDSR = {"distill.p_switch": 1.0}
ABLATION: dict[AblationRow, dict[str, Any]] = {
    "PDSR": NO_AOP | NO_TS | NO_TA,
    "PDSR + AOP": NO_TS | NO_TA,
    "PDSR + AOP + TS": NO_TA,
    "all": {},
    "all - PDSR": NO_PDSR,
    "all - AOP": NO_AOP,
    "all - TS": NO_TS,
    "all - bounds": {"distill.tau_max": 1.0, "distill.tau_min": 0.0},
    "all, TA-FM as published": {"distill.losses.ta_fm": 1.0, "distill.ta_fm_scale": None},
}

# An acceleration LoRA learns no effect: what concerns effects alone changes nothing of it, and
# stays out of its name.
GENERAL_ALONE: dict[str, Any] = {
    "distill.p_switch": 0.0,
    "distill.warm_start": None,
    "distill.losses.dmd_ts": 0.0,
    "distill.losses.ta_fm": 0.0,
    "distill.ta_fm_scale": None,
    "distill.ta_fm_batch": 0,
    # A look scores effects, and there are none.
    "watch.every": 0,
}

# A bench of minutes that goes through every line of a long one; its numbers mean nothing.
QUICK: dict[str, Any] = {
    # What takes the time at this size is starting actors.
    "cluster.encoder_pool.min": 1,
    "cluster.encoder_pool.max": 1,
    "cluster.teacher_pool.min": 1,
    "cluster.teacher_pool.max": 1,
    "teach.steps": 8,
    "teach.batch": 2,
    "targets.sources": 4,
    "targets.steps": 2,
    "student.steps": 4,
    "student.lora": {"rank": 4, "alpha": 4},
    "distill.warm_start": {"steps": 8, "batch": 2, "follow": "teachers", "general": 1},
    "distill.rounds": 3,
    "distill.batch": 2,
    "distill.ta_fm_batch": 2,
    "distill.fake_updates": 1,
    "evaluate.photographs": 2,
    "evaluate.bootstrap": 100,
    "bench.seeds": [0],
    "bench.joint": {"steps": 8, "batch": 2, "general": 1},
    "bench.acceleration_set": {},
    "bench.ablation_set": {},
    # The first is one of the prompts', too, and the other is the main report's student.
    "bench.ablation": ["all - AOP", "all"],
    "bench.ablation_effects": 3,
    "bench.scale_set": {},
    # As many as the ablation has; where that is the whole bank, the main report's student serves.
    "bench.scale": [3],
    "bench.general_edits": 2,
    "bench.growth": {
        "effects": ["candy_print"],
        "set": {"distill.rounds": 2, "grow.warm_start": {"steps": 2, "batch": 2}},
    },
    "bench.sizes": {"pairs": 2, "bank": [2, 4], "queries": 6},
}


def bench(recipe: Recipe, bank: Bank, reports: Sequence[str]) -> Path:
    """Bring the named reports up to date; returns their folder."""
    with _ray_when_needed(recipe) as ray:
        work = Bench(recipe, bank, ray)
        _check(work, reports)
        for name in reports:
            REPORTS[name](work)
            publish_evidence(recipe, work.tracking(), work.root, name)
    return work.root / "bench"


def _check(work: Bench, reports: Sequence[str]) -> None:
    """What a report wants of recipe and bank, asked before the first one trains for hours.

    Raises:
        InputError: all that they cannot use.
    """
    families_of(work.recipe, work.bank)
    problems: list[Problem] = []
    for name in reports:
        try:
            if name in WANTS:
                WANTS[name](work)
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)


def main_report(work: Bench) -> None:
    """Every contender on the whole bank, for each seed."""
    recipe, bank = work.recipe, work.bank
    prepared = work.prepared(recipe, bank, "main")
    evidence = Evidence("main", [], {}, {})
    standard = standard_methods(recipe, prepared.manifest, ("", ""))[:2]
    methods = [*standard, *untrained_contenders(recipe, prepared.manifest, folder_of(work))]
    score(work, evidence, recipe, bank, prepared, methods, None)
    _joint(work, recipe, prepared, recipe.bench.seeds)
    for seed in recipe.bench.seeds:
        seeded = vary(recipe, {"distill.seed": seed})
        lora = work.train(f"student-seed{seed}", seeded, bank, prepared.manifest)
        methods = [student_method(recipe, prepared.manifest, lora, "student")]
        score(work, evidence, recipe, bank, prepared, methods, seed)
        methods = trained_contenders(work, seeded, bank, prepared)
        score(work, evidence, recipe, bank, prepared, methods, seed)
        evidence.curves[f"student, seed {seed}"] = thin(work.history(seeded, prepared.manifest))
        evidence.write(work)


def trained_contenders(work: Bench, recipe: Recipe, bank: Bank, prepared: Prepared) -> list[Method]:
    """Cascade, joint flow matching, and that with the acceleration LoRA, of one seed."""
    folder, draws = folder_of(work), recipe.evaluate.draws
    names = [e.name for e in prepared.manifest.effects]
    seed = recipe.distill.seed or 0
    # The acceleration LoRA knows no effect, so it is one and the same for every collection.
    general = Manifest((), prepared.manifest.general)
    alone = GENERAL_ALONE | {"distill.seed": seed}
    fast = vary(work.recipe, work.recipe.bench.acceleration_set | alone)
    acceleration = work.train(f"acceleration-seed{seed}", fast, bank, general)
    (joint,) = _joint(work, recipe, prepared, [seed])
    both = everyone(names, stacked([joint, acceleration], folder))
    return [
        cascade(recipe, prepared.manifest, acceleration, folder),
        many_steps(recipe, "joint-fm", everyone(names, joint), draws),
        few_steps(recipe, "joint-fm + acceleration", both, draws),
    ]


def _joint(work: Bench, recipe: Recipe, prepared: Prepared, seeds: Sequence[int]) -> list[Path]:
    stores, effects = Places(work.root).stores, prepared.collection.effects
    manifest, folder = prepared.manifest, folder_of(work)
    return joint_loras(recipe, effects, manifest, folder, seeds, stores, work.ray)


def ablation_report(work: Bench) -> None:
    """The paper's rows and ours, on a part of the bank, for each seed."""
    settings = work.recipe.bench
    rows = tuple(ABLATION) if settings.ablation is None else settings.ablation
    bank = part_of(work.bank, settings.ablation_effects)
    evidence = Evidence("ablation", [], {}, {})
    common = settings.ablation_set | named(bank, work.bank)
    for seed in settings.seeds:
        for name in rows:
            recipe = ablated(work.recipe, common | ABLATION[name] | {"distill.seed": seed})
            prepared = work.prepared(recipe, bank, plain(f"ablation {name}"))
            if not evidence.cells:
                standard = standard_methods(recipe, prepared.manifest, ("", ""))[:2]
                score(work, evidence, recipe, bank, prepared, standard, None)
            lora = work.train(f"{plain(name)}-seed{seed}", recipe, bank, prepared.manifest)
            method = student_method(recipe, prepared.manifest, lora, name)
            score(work, evidence, recipe, bank, prepared, [method], seed)
            evidence.curves[f"{name}, seed {seed}"] = thin(work.history(recipe, prepared.manifest))
            evidence.write(work)


def ablated(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with a row's changes; without the general stream none in the warm start either."""
    varied = vary(recipe, changes)
    if varied.distill.p_switch < 1 or varied.distill.warm_start is None:
        return varied
    return vary(varied, {"distill.warm_start.general": 0})


def scale_report(work: Bench) -> None:
    """Student, cascade and joint flow matching by number of effects, one seed."""
    settings = work.recipe.bench
    evidence = Evidence("scale", [], {}, {})
    for count in sizes_of(work.recipe, work.bank):
        bank = part_of(work.bank, count)
        changes = settings.scale_set | named(bank, work.bank) | {"distill.seed": settings.seeds[0]}
        recipe = vary(work.recipe, changes)
        prepared = work.prepared(recipe, bank, f"scale-{count}")
        lora = work.train(f"scale-{count}", recipe, bank, prepared.manifest)
        standard = standard_methods(recipe, prepared.manifest, adapter_file(lora))
        contenders = [*standard, *trained_contenders(work, recipe, bank, prepared)]
        # Pictures are kept under these names.
        methods = [replace(m, name=f"{m.name} @ {count}") for m in contenders]
        score(work, evidence, recipe, bank, prepared, methods, settings.seeds[0])
        student, base = f"student @ {count}", f"base @ {count}"
        evidence.pairs += [(student, m.name) for m in methods if m.name not in (student, base)]
        evidence.curves[student] = thin(work.history(recipe, prepared.manifest))
        evidence.write(work)


def sizes_of(recipe: Recipe, bank: Bank) -> list[int]:
    """The collections' sizes; one beyond the bank is the bank's."""
    return sorted({min(size, len(bank.effects)) for size in recipe.bench.scale})


REPORTS: dict[str, Callable[[Bench], None]] = {
    "main": main_report,
    "ablation": ablation_report,
    "scale": scale_report,
    "growth": growth_report,
    "composition": composition_report,
    "generality": generality_report,
    "prompts": prompts_report,
    "deployment": deployment_report,
}
WANTS: dict[str, Callable[[Bench], object]] = {
    "main": lambda work: wants_general(work.recipe, work.bank),
    "scale": lambda work: wants_general(vary(work.recipe, work.recipe.bench.scale_set), work.bank),
    "growth": new_bank,
    "composition": pairs_to_compose,
    "generality": lambda work: trained_photographs(work.recipe, work.bank),
}


@contextmanager
def _ray_when_needed(recipe: Recipe) -> Iterator[Callable[[], None]]:
    """A function that starts Ray the first time it is called; Ray ends with the block."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(ray_session(recipe.cluster))
