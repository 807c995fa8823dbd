"""Deployment: one student against the bank that it replaces: what is stored, switched and routed.

A bank larger than the recipe's is made of copies: its LoRAs once more under other names. For
storage and switching a copy is as good as another; for routing it is not, so that stops at the
bank's own size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.bank import Bank
from pipeline.config import Recipe, vary
from pipeline.controller import Prepared
from pipeline.distill.noise import generator
from pipeline.evaluation.effectbench import Method, TestSource, adapter_file, standard_methods
from pipeline.evaluation.routing import routed, routing_errors
from pipeline.models.local import absolute
from pipeline.models.lora_formats import content_hash
from pipeline.places import Places
from pipeline.stages.encode import Encodings, encode, missing
from pipeline.stages.evaluate import model_key
from pipeline.stages.evidence.work import Bench, Evidence, part_of
from pipeline.stages.wording import directions
from pipeline.tensor_store import stored_keys

ROUTED, FREE = "teacher behind a router", "student in free words"


def deployment_report(work: Bench) -> None:
    """Costs of bank and student, and what a router's mistakes do to the pictures; one seed."""
    recipe, bank = work.recipe, work.bank
    prepared = work.prepared(recipe, bank, "main")
    seed = recipe.bench.seeds[0]
    seeded = vary(recipe, {"distill.seed": seed})
    lora = work.train(f"student-seed{seed}", seeded, bank, prepared.manifest)
    pairs = [("student", ROUTED), (FREE, ROUTED), ("teacher", ROUTED)]
    evidence = Evidence("deployment", [], {}, {}, pairs=pairs)
    adapters = {e.name: Path(e.adapter) for e in prepared.manifest.effects}
    evidence.extra = {
        "queries": recipe.bench.sizes.queries,
        "effects": len(adapters),
        "serving": work.remembered(
            "serving",
            [
                model_key(recipe),
                [content_hash(path) for path in (*adapters.values(), lora)],
                recipe.bench.sizes.model_dump(mode="json", exclude={"pairs"}),
            ],
            lambda: _served(work, recipe, adapters, lora),
        ),
    }
    queries, index = _words(bank)
    names = list(index)
    texts = [*index.values(), *queries.values()]
    found = directions(recipe, bank, texts, Places(work.root), work.ray)
    known, asked = found[: len(names)], found[len(names) :]
    evidence.extra["routing"] = [
        {"loras": size, "errors": routing_errors(known[part], asked[part])}
        for size in sorted({min(n, len(names)) for n in recipe.bench.sizes.bank})
        for part in [_part(bank, names, size)]
    ]
    route = dict(zip(names, (names[i] for i in routed(known, asked)), strict=True))
    _, teacher, student = standard_methods(recipe, prepared.manifest, adapter_file(lora))
    free, behind = _asked_freely(work, recipe, prepared, queries, route)
    swapped = {name: teacher.adapters[route[name]] for name in names}
    # Also those that no query of ours was routed to.
    routed_to = replace(
        teacher,
        name=ROUTED,
        adapters=swapped,
        prompts="student",
        ships=tuple(path for path, _ in teacher.adapters.values()),
    )
    for method, test, trained in (
        (teacher, prepared.collection.test, None),
        (student, prepared.collection.test, seed),
        (routed_to, behind, None),
        (replace(student, name=FREE), free, seed),
    ):
        _add(work, evidence, recipe, bank, prepared, test, method, trained)


def _add(
    work: Bench,
    evidence: Evidence,
    recipe: Recipe,
    bank: Bank,
    prepared: Prepared,
    test: Sequence[TestSource],
    method: Method,
    seed: int | None,
) -> None:
    cells, costs = work.effects(recipe, bank, prepared.manifest, test, [method], seed)
    evidence.cells += cells
    evidence.costs |= costs
    evidence.write(work)


def _words(bank: Bank) -> tuple[dict[str, str], dict[str, str]]:
    """What users ask for (a caption, or what describes the effect) and what a bank is indexed by.

    An effect that has a prompt alone is asked for in the index's own words.
    """
    queries = {e.name: e.description or e.caption or e.prompt for e in bank.effects}
    return queries, {e.name: e.prompt for e in bank.effects}


def _part(bank: Bank, names: Sequence[str], size: int) -> list[int]:
    """The places of a part of the bank, its categories in turn."""
    return [names.index(effect.name) for effect in part_of(bank, size).effects]


def _served(
    work: Bench, recipe: Recipe, adapters: Mapping[str, Path], lora: Path
) -> list[dict[str, Any]]:
    """Storage, switches and residency of banks of each size, and of the student."""
    work.ray()
    import ray

    from actors.serving_tasks import serve
    from actors.session import device_of

    sizes, names = recipe.bench.sizes, list(adapters)
    banks = [
        [
            (f"{names[i % len(names)]} {i // len(names)}", adapters[names[i % len(names)]])
            for i in range(size)
        ]
        for size in sizes.bank
    ]
    shuffles = [_shuffled(recipe, bank, sizes.queries) for bank in banks]
    one = [[("student", str(lora))] * sizes.queries]
    pool = recipe.cluster.teacher_pool
    task = serve.options(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, resources=pool.resources)
    served = ray.get(
        task.remote(
            [*shuffles, *one],
            absolute(recipe.model.path),
            device_of(recipe.model, pool.num_gpus),
            recipe.model.dtype,
            pool.threads,
        )
    )
    stored = [float(sum(p.stat().st_size for _, p in bank)) for bank in banks]
    return [
        {
            "name": name,
            "loras": count,
            "stored_bytes": size,
            "switches": found.switches,
            "seconds_per_switch": float(np.median(found.seconds)),
            "seconds_switching": float(sum(found.seconds)),
            "resident_bytes": float(found.base_bytes + found.adapter_bytes),
            "resident_bytes_all": float(found.base_bytes + count * found.adapter_bytes),
        }
        for name, count, size, found in zip(
            [*(f"bank of {size}" for size in sizes.bank), "student"],
            [*sizes.bank, 1],
            [*stored, float(lora.stat().st_size)],
            served,
            strict=True,
        )
    ]


def _shuffled(
    recipe: Recipe, bank: Sequence[tuple[str, Path]], queries: int
) -> list[tuple[str, str]]:
    """Queries for the LoRAs of a bank: all of them in turn, the order shuffled."""
    order = generator(recipe.seed, "queries", len(bank)).permutation(queries)
    return [(bank[i % len(bank)][0], str(bank[i % len(bank)][1].resolve())) for i in order]


def _asked_freely(
    work: Bench,
    recipe: Recipe,
    prepared: Prepared,
    queries: Mapping[str, str],
    route: Mapping[str, str],
) -> tuple[list[TestSource], list[TestSource]]:
    """The photographs with the query for the student's prompt; and with the routed teacher's.

    The teachers' own prompts stay: where nobody knows the truth, it is what they make of them.
    """
    places, encodings = Places(work.root), Encodings(recipe.model)
    free, behind = [], []
    for source in prepared.collection.test:
        seen = [Path(source.path)]
        asked = {name: encodings.prompt(text, seen) for name, text in queries.items()}
        free.append(replace(source, student_prompts=asked))
        taken = {name: source.teacher_prompts[route[name]] for name in queries}
        behind.append(replace(source, student_prompts=taken))
    if todo := missing(encodings.jobs.values(), stored_keys(places.encodings)):
        work.ray()
        encode(recipe, todo, places.encodings)
    return free, behind
