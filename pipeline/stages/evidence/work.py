"""What all reports of a bench share: training once, scoring alike, and writing as it goes."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pipeline import mirror
from pipeline.bank import Bank, Effect
from pipeline.config import Recipe, vary
from pipeline.controller import Prepared, distilled, prepare
from pipeline.evaluation.effectbench import (
    EvalRow,
    Method,
    TestSource,
    adapter_file,
    standard_methods,
)
from pipeline.evaluation.evidence import Cell, cells_of, to_json
from pipeline.evaluation.report import environment
from pipeline.places import Places
from pipeline.stages.distill import History
from pipeline.stages.evaluate import Evaluation, evaluate, plan_evaluation
from pipeline.stages.evidence_report import write_evidence
from pipeline.stages.generality import GeneralEdits, ask_general, general_cells
from pipeline.stages.publish import Publisher
from pipeline.stages.student import run_key_of
from pipeline.storage import content_key, write_atomic
from pipeline.tensor_store import stored_keys
from pipeline.types import Manifest


@dataclass
class Bench:
    """A recipe with the whole bank, and where the bench keeps everything."""

    recipe: Recipe
    bank: Bank
    ray: Callable[[], None]

    @property
    def root(self) -> Path:
        return Places.of(self.recipe.output).output

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
        named = vary(recipe, {"name": name, "tracking": self.tracking()})
        print(f"{name}: {key}", flush=True)
        publisher = Publisher(named, bank, places)
        progress = publisher.progress(History(places.history))
        return distilled(recipe, manifest, places, self.ray, progress, publisher.preview)

    def tracking(self) -> dict[str, Any]:
        """Where a bench is recorded: all of it in one experiment of one store."""
        settings = self.recipe.tracking
        uri = settings.uri or f"sqlite:///{(self.root / 'mlflow.db').resolve()}"
        return {"uri": uri, "experiment": settings.experiment or self.recipe.name}

    def history(self, recipe: Recipe, manifest: Manifest) -> list[dict[str, float]]:
        """The rounds of a student that was trained here."""
        return History(self.places(run_key_of(recipe, manifest)).history).load()

    def remembered(self, kind: str, content: Sequence[object], make: Callable[[], Any]) -> Any:
        """Plain data that is made once for all that it depends on, and kept as JSON."""
        path = Places(self.root).cache / kind / f"{content_key(kind, *content)}.json"
        if not mirror.fetch(path):
            write_atomic(path, json.dumps(make(), allow_nan=False).encode())
        return json.loads(path.read_bytes())

    def evaluated(
        self,
        recipe: Recipe,
        bank: Bank,
        manifest: Manifest,
        test: Sequence[TestSource],
        methods: Sequence[Method],
        also: Sequence[EvalRow] = (),
    ) -> Evaluation:
        """Every output's scores on every effect of a bank, and what a method costs.

        manifest: the bank's teachers, by whom outputs are judged where nobody knows the truth;
        also: further pictures to make meanwhile, by the same actors.
        """
        places = Places(self.root)
        judges = teachers_to_judge_by(recipe, manifest, methods)
        plan = plan_evaluation(recipe, bank, test, [*judges, *methods], places.evaluation)
        stored = stored_keys(plan.pictures)
        unmade = [row for row in also if row["key"] not in stored]
        plan = replace(plan, unsampled=[*plan.unsampled, *unmade])
        if plan.unsampled or plan.unjudged:
            self.ray()
        found = evaluate(recipe, plan, places.stores)
        asked = {method.name for method in methods}
        return replace(
            found,
            scores=[score for score in found.scores if score.method in asked],
            costs={name: cost for name, cost in found.costs.items() if name in asked},
            rows=[row for row in found.rows if row["method"] in asked],
        )

    def scores(
        self,
        recipe: Recipe,
        bank: Bank,
        manifest: Manifest,
        test: Sequence[TestSource],
        methods: Sequence[Method],
        seed: int | None,
    ) -> tuple[list[Cell], dict[str, dict[str, float]]]:
        """Cells of the methods on every effect and, for those that are one set of weights, on
        general edits; and what they cost."""
        general = self.asked(recipe, bank, test, methods)
        cells, costs = self.effects(recipe, bank, manifest, test, methods, seed, general.rows)
        return cells + self.answered(general, seed), costs

    def asked(
        self, recipe: Recipe, bank: Bank, test: Sequence[TestSource], methods: Sequence[Method]
    ) -> GeneralEdits:
        """General edits to ask of those methods that are one set of weights."""
        return ask_general(recipe, bank, test, methods, Places(self.root), self.ray)

    def answered(self, general: GeneralEdits, seed: int | None) -> list[Cell]:
        """Cells of general edits whose pictures are made."""
        cells = general_cells(general, Places(self.root).evaluation / "pictures")
        return [replace(cell, seed=seed) for cell in cells]

    def effects(
        self,
        recipe: Recipe,
        bank: Bank,
        manifest: Manifest,
        test: Sequence[TestSource],
        methods: Sequence[Method],
        seed: int | None,
        also: Sequence[EvalRow] = (),
    ) -> tuple[list[Cell], dict[str, dict[str, float]]]:
        """Cells of the methods on every effect, and what they cost."""
        found = self.evaluated(recipe, bank, manifest, test, methods, also)
        costs = {m.name: vars(found.costs[m.name]) | {"bytes": m.shipped_bytes} for m in methods}
        return cells_of(found.scores, seed), costs


@dataclass
class Evidence:
    """What a report knows so far; written to ``bench/<name>.json`` and drawn from there.

    pairs: of methods, the first to be held against the second (where a report has more to say
    than one student against all); extra: a report's own numbers, plain data.
    """

    name: str
    cells: list[Cell]
    costs: dict[str, dict[str, float]]
    curves: dict[str, list[dict[str, float]]]
    pairs: list[tuple[str, str]] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)

    def write(self, bench: Bench) -> None:
        folder, held_out = bench.root / "bench", bench.bank.test
        content = {
            "report": self.name,
            "photographs": len(held_out[: bench.recipe.evaluate.photographs]),
            "recipe": bench.recipe.model_dump(mode="json"),
            "date": datetime.now(UTC).strftime("%Y-%m-%d"),
            "environment": environment(),
            "costs": self.costs,
            "curves": self.curves,
            "pairs": self.pairs,
            "extra": self.extra,
            "cells": to_json(self.cells),
        }
        text = json.dumps(content, indent=1, allow_nan=False)
        write_atomic(folder / f"{self.name}.json", text.encode())
        write_evidence(folder, self.name)


def teachers_to_judge_by(
    recipe: Recipe, manifest: Manifest, methods: Sequence[Method]
) -> list[Method]:
    """The teachers, where it is their pictures that others are held against; none if they are
    among the methods, or the truth is known."""
    teacher = standard_methods(recipe, manifest, ("", ""))[1]
    known = recipe.evaluate.truth == "miniature"
    return [] if known or teacher.name in {method.name for method in methods} else [teacher]


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


def named(part: Bank, whole: Bank) -> dict[str, Any]:
    """The recipe's changes for a part of its bank: none for all of it, which is trained once."""
    names = [effect.name for effect in part.effects]
    return {} if len(names) == len(whole.effects) else {"effects": names}


def score(
    work: Bench,
    evidence: Evidence,
    recipe: Recipe,
    bank: Bank,
    prepared: Prepared,
    methods: Sequence[Method],
    seed: int | None,
) -> None:
    test = prepared.collection.test
    cells, costs = work.scores(recipe, bank, prepared.manifest, test, methods, seed)
    evidence.cells += cells
    evidence.costs |= costs
    evidence.write(work)


def student_method(recipe: Recipe, manifest: Manifest, lora: Path, name: str) -> Method:
    student = standard_methods(recipe, manifest, adapter_file(lora))[2]
    return replace(student, name=name)


def folder_of(work: Bench) -> Path:
    return Places(work.root).cache / "contenders"


def plain(name: str) -> str:
    """A variant's name as a folder's or a run's."""
    return name.replace(" + ", "-and-").replace(" - ", "-less-").replace(" ", "-")


def thin(history: Sequence[Mapping[str, float]], points: int = 100) -> list[dict[str, float]]:
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
