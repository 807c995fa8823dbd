"""Bench: the evidence. Trains every contender through the run's own stages and scores all alike.

Every run is resumable (a finished student is found under its key, a cut one goes on from its
checkpoint) and every picture and score is cached by content, so a bench may be stopped at any
moment and run in pieces. A report is written anew after each seed, from what there is.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from actors.session import ray_session
from pipeline.bank import Bank, Effect
from pipeline.config import Recipe, vary
from pipeline.controller import Prepared, distilled, prepare
from pipeline.evaluation.effectbench import Method, TestSource, adapter_file, standard_methods
from pipeline.evaluation.evidence import Cell, cells_of, to_json
from pipeline.evaluation.report import environment
from pipeline.places import Places
from pipeline.problems import InputError, Problem
from pipeline.stages.contenders import (
    cascade,
    everyone,
    few_steps,
    joint_lora,
    many_steps,
    stacked,
    untrained_contenders,
)
from pipeline.stages.distill import History
from pipeline.stages.evaluate import evaluate, plan_evaluation
from pipeline.stages.evidence_report import write_evidence
from pipeline.stages.generality import general_cells
from pipeline.stages.publish import Publisher
from pipeline.stages.student import run_key_of
from pipeline.storage import write_atomic
from pipeline.types import Manifest

# The paper's ablation (table 3), a row a variant: what is switched off against the whole method.
NO_AOP = {"prompts.triggers": "none"}
NO_TS = {"distill.losses.dmd_ts": 0.0}
NO_TA = {"distill.losses.ta_fm": 0.0}
NO_PDSR = {"distill.p_switch": 1.0}
ABLATION: dict[str, dict[str, Any]] = {
    "PDSR": NO_AOP | NO_TS | NO_TA,
    "PDSR + AOP": NO_TS | NO_TA,
    "PDSR + AOP + TS": NO_TA,
    "all": {},
    "all - PDSR": NO_PDSR,
    "all - AOP": NO_AOP,
    "all - TS": NO_TS,
    "all - bounds": {"distill.tau_max": 1.0, "distill.tau_min": 0.0},
}

# A bench of minutes that goes through every line of a long one; its numbers mean nothing.
QUICK: dict[str, Any] = {
    "teach.steps": 8,
    "teach.batch": 2,
    "targets.sources": 4,
    "targets.steps": 2,
    "student.steps": 4,
    "student.lora": {"rank": 4, "alpha": 4},
    "distill.rounds": 3,
    "distill.batch": 2,
    "distill.ta_fm_batch": 2,
    "distill.fake_updates": 1,
    "evaluate.photographs": 2,
    "evaluate.bootstrap": 100,
    "bench.seeds": [0],
    "bench.joint": {"steps": 8, "batch": 2},
    "bench.acceleration_set": {},
    "bench.ablation_set": {},
    "bench.ablation": ["PDSR", "all"],
    "bench.ablation_effects": 3,
    "bench.scale_set": {},
    "bench.scale": [2],
    "bench.general_edits": 2,
}


@dataclass
class Bench:
    """A recipe with the whole bank, and where the bench keeps everything."""

    recipe: Recipe
    bank: Bank
    ray: Callable[[], None]

    @property
    def root(self) -> Path:
        return Path(self.recipe.output)

    def places(self, name: str) -> Places:
        """A run's own folder; its cache is the bench's."""
        return Places(self.root / "runs" / name, self.root)

    def prepared(self, recipe: Recipe, bank: Bank, name: str) -> Prepared:
        """Encodings, teachers and targets of a collection, pairs encoded too."""
        made = prepare(recipe, bank, self.places(name), self.ray, pairs=True)
        assert made is not None
        return made

    def train(self, name: str, recipe: Recipe, bank: Bank, manifest: Manifest) -> Path:
        """A finished student's file; the same settings and data are trained once."""
        key = run_key_of(recipe, manifest)
        places = self.places(key)
        named = vary(recipe, {"name": name, "tracking": self._tracking()})
        print(f"{name}: {key}", flush=True)
        publisher = Publisher(named, bank, places)
        progress = publisher.progress(History(places.history))
        return distilled(recipe, manifest, places, self.ray, progress, publisher.preview)

    def _tracking(self) -> dict[str, Any]:
        settings = self.recipe.tracking
        uri = settings.uri or f"sqlite:///{(self.root / 'mlflow.db').resolve()}"
        return {"uri": uri, "experiment": settings.experiment or self.recipe.name}

    def history(self, recipe: Recipe, manifest: Manifest) -> list[dict[str, float]]:
        """The rounds of a student that was trained here."""
        return History(self.places(run_key_of(recipe, manifest)).history).load()

    def scores(
        self,
        recipe: Recipe,
        bank: Bank,
        test: Sequence[TestSource],
        methods: Sequence[Method],
        seed: int | None,
    ) -> tuple[list[Cell], dict[str, dict[str, float]]]:
        """Cells of the methods on every effect and on general edits, and what they cost."""
        places = Places(self.root)
        plan = plan_evaluation(recipe, bank, test, methods, places.evaluation)
        if plan.unsampled or plan.unjudged:
            self.ray()
        found = evaluate(recipe, plan, places.stores)
        costs = {name: vars(cost) | {"bytes": 0.0} for name, cost in found.costs.items()}
        for method in methods:
            files = {path for path, _ in method.adapters.values()}
            costs[method.name]["bytes"] = float(sum(Path(f).stat().st_size for f in files))
        general = general_cells(recipe, bank, test, methods, places, self.ray)
        return cells_of(found.scores, seed) + [replace(c, seed=seed) for c in general], costs


@dataclass
class Evidence:
    """What a report knows so far; written to ``bench/<name>.json`` and drawn from there."""

    name: str
    cells: list[Cell]
    costs: dict[str, dict[str, float]]
    curves: dict[str, list[dict[str, float]]]

    def write(self, bench: Bench) -> None:
        folder = bench.root / "bench"
        content = {
            "report": self.name,
            "recipe": bench.recipe.model_dump(mode="json"),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "environment": environment(),
            "costs": self.costs,
            "curves": self.curves,
            "cells": to_json(self.cells),
        }
        text = json.dumps(content, indent=1, allow_nan=False)
        write_atomic(folder / f"{self.name}.json", text.encode())
        write_evidence(folder, self.name)


def bench(recipe: Recipe, bank: Bank, reports: Sequence[str]) -> Path:
    """Bring the named reports up to date; returns their folder."""
    with _ray_when_needed(recipe) as ray:
        work = Bench(recipe, bank, ray)
        for name in reports:
            {"main": main_report, "ablation": ablation_report, "scale": scale_report}[name](work)
    return work.root / "bench"


def main_report(work: Bench) -> None:
    """Every contender on the whole bank, for each seed."""
    recipe, bank = work.recipe, work.bank
    prepared = work.prepared(recipe, bank, "main")
    evidence = Evidence("main", [], {}, {})
    standard = standard_methods(recipe, prepared.manifest, ("", ""))[:2]
    methods = [*standard, *untrained_contenders(recipe, prepared.manifest, _folder(work))]
    _score(work, evidence, recipe, bank, prepared, methods, None)
    for seed in recipe.bench.seeds:
        seeded = vary(recipe, {"distill.seed": seed})
        lora = work.train(f"student-seed{seed}", seeded, bank, prepared.manifest)
        methods = [_student(recipe, prepared.manifest, lora, "student")]
        _score(work, evidence, recipe, bank, prepared, methods, seed)
        methods = trained_contenders(work, seeded, bank, prepared)
        _score(work, evidence, recipe, bank, prepared, methods, seed)
        evidence.curves[f"student, seed {seed}"] = _thin(work.history(seeded, prepared.manifest))
        evidence.write(work)


def trained_contenders(work: Bench, recipe: Recipe, bank: Bank, prepared: Prepared) -> list[Method]:
    """Cascade, joint flow matching, and that with the acceleration LoRA, of one seed."""
    folder, draws = _folder(work), recipe.evaluate.draws
    names = [e.name for e in prepared.manifest.effects]
    seed = recipe.distill.seed or 0
    # The acceleration LoRA knows no effect, so it is the same for every collection.
    general = Manifest((), prepared.manifest.general)
    fast = vary(recipe, recipe.bench.acceleration_set | {"distill.p_switch": 0.0})
    acceleration = work.train(f"acceleration-seed{seed}", fast, bank, general)
    work.ray()
    joint = joint_lora(recipe, prepared.collection.effects, folder, seed, Places(work.root).stores)
    both = everyone(names, stacked([joint, acceleration], folder))
    return [
        cascade(recipe, prepared.manifest, acceleration, folder),
        many_steps(recipe, "joint-fm", everyone(names, joint), draws),
        few_steps(recipe, "joint-fm + acceleration", both, draws),
    ]


def ablation_report(work: Bench) -> None:
    """The paper's rows and ours, on a part of the bank, for each seed."""
    settings = work.recipe.bench
    rows = ablation_rows(settings.ablation)
    bank = part_of(work.bank, settings.ablation_effects)
    evidence = Evidence("ablation", [], {}, {})
    common = settings.ablation_set | {"effects": [e.name for e in bank.effects]}
    for seed in settings.seeds:
        for name, switches in rows.items():
            recipe = vary(work.recipe, common | switches | {"distill.seed": seed})
            prepared = work.prepared(recipe, bank, _plain(f"ablation {name}"))
            if not evidence.cells:
                standard = standard_methods(recipe, prepared.manifest, ("", ""))[:2]
                _score(work, evidence, recipe, bank, prepared, standard, None)
            lora = work.train(f"{_plain(name)}-seed{seed}", recipe, bank, prepared.manifest)
            method = _student(recipe, prepared.manifest, lora, name)
            _score(work, evidence, recipe, bank, prepared, [method], seed)
            evidence.curves[f"{name}, seed {seed}"] = _thin(work.history(recipe, prepared.manifest))
            evidence.write(work)


def ablation_rows(names: Sequence[str] | None) -> dict[str, dict[str, Any]]:
    """The named rows of the ablation with their switches; all of them where none is named.

    Raises:
        InputError: a name that is no row.
    """
    rows = list(ABLATION) if names is None else list(names)
    remedy = f"the rows are {', '.join(ABLATION)}"
    problems = [
        Problem("recipe", "bench.ablation", n, "no such row", remedy)
        for n in rows
        if n not in ABLATION
    ]
    if problems:
        raise InputError(problems)
    return {name: ABLATION[name] for name in rows}


def scale_report(work: Bench) -> None:
    """Student, cascade and joint flow matching by number of effects, one seed."""
    settings = work.recipe.bench
    evidence = Evidence("scale", [], {}, {})
    for count in settings.scale:
        bank = part_of(work.bank, count)
        names = [e.name for e in bank.effects]
        changes = settings.scale_set | {"effects": names, "distill.seed": settings.seeds[0]}
        recipe = vary(work.recipe, changes)
        prepared = work.prepared(recipe, bank, f"scale-{count}")
        lora = work.train(f"scale-{count}", recipe, bank, prepared.manifest)
        standard = standard_methods(recipe, prepared.manifest, adapter_file(lora))
        contenders = [*standard, *trained_contenders(work, recipe, bank, prepared)]
        methods = [replace(m, name=f"{m.name} @ {count}") for m in contenders]
        _score(work, evidence, recipe, bank, prepared, methods, settings.seeds[0])
        history = work.history(recipe, prepared.manifest)
        evidence.curves[f"student @ {count}"] = _thin(history)
        evidence.write(work)


def part_of(bank: Bank, count: int) -> Bank:
    """The bank's first effects with its categories taken in turn, so that each has its share."""
    kinds: dict[str, list[Effect]] = {}
    for effect in bank.effects:
        kinds.setdefault(effect.category, []).append(effect)
    turns = [e for row in zip_longest(*kinds.values()) for e in row if e is not None]
    chosen = {e.name for e in turns[:count]}
    return replace(
        bank,
        effects=tuple(e for e in bank.effects if e.name in chosen),
        pairs=tuple(p for p in bank.pairs if p.effect in chosen),
    )


def _score(
    work: Bench,
    evidence: Evidence,
    recipe: Recipe,
    bank: Bank,
    prepared: Prepared,
    methods: Sequence[Method],
    seed: int | None,
) -> None:
    cells, costs = work.scores(recipe, bank, prepared.collection.test, methods, seed)
    evidence.cells += cells
    evidence.costs |= costs
    evidence.write(work)


def _student(recipe: Recipe, manifest: Manifest, lora: Path, name: str) -> Method:
    student = standard_methods(recipe, manifest, adapter_file(lora))[2]
    return replace(student, name=name)


def _folder(work: Bench) -> Path:
    return Places(work.root).cache / "contenders"


def _plain(name: str) -> str:
    """A variant's name as a folder's or a run's."""
    return name.replace(" + ", "-and-").replace(" - ", "-less-").replace(" ", "-")


def _thin(history: Sequence[Mapping[str, float]], points: int = 100) -> list[dict[str, float]]:
    """A training curve of at most that many points, each the mean of its stretch of rounds."""
    width = max(1, -(-len(history) // points))
    stretches = [history[i : i + width] for i in range(0, len(history), width)]
    kept = (
        "round",
        "loss_fake",
        "loss_dmd_bs",
        "loss_dmd_ts",
        "loss_ta_fm",
        "grad_norm_student",
        "seconds_update",
        "seconds_wait",
    )
    return [
        {
            k: round(sum(row[k] for row in stretch) / len(stretch), 5)
            for k in kept
            if all(k in row for row in stretch)
        }
        for stretch in stretches
    ]


@contextmanager
def _ray_when_needed(recipe: Recipe) -> Iterator[Callable[[], None]]:
    """A function that starts Ray the first time it is called; Ray ends with the block."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(ray_session(recipe.cluster))
