"""Generality: does a method still follow instructions that are no effect of the bank?

Measured on general edits whose truth is known, on the held-out photographs. Only methods that are
one set of weights can be asked: a bank of adapters would need a router's opinion first.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pipeline.bank import Bank
from pipeline.config import Recipe
from pipeline.evaluation.effectbench import EvalRow, Method, TestSource, eval_rows, open_source
from pipeline.evaluation.evidence import Cell
from pipeline.evaluation.metrics import fidelity_db
from pipeline.miniature.edits import GENERAL_EDITS, apply_edit
from pipeline.places import Places
from pipeline.stages.encode import Encodings, encode, missing
from pipeline.stages.evaluate import EvaluationPlan, evaluate, model_key
from pipeline.tensor_store import TensorStore, stored_keys

# Their outcome is a matter of chance: no one truth to be near to.
BY_CHANCE = {"noise", "dots", "lines"}


def general_cells(
    recipe: Recipe,
    bank: Bank,
    test: Sequence[TestSource],
    methods: Sequence[Method],
    places: Places,
    ray: Callable[[], None],
) -> list[Cell]:
    """A cell a method and general edit, with ``generality`` in dB; none where truth is unknown."""
    edits = known_edits(bank, recipe.bench.general_edits)
    single = [m for m in methods if len(set(m.adapters.values())) <= 1]
    if recipe.evaluate.truth != "miniature" or not edits or not single:
        return []
    asked = _ask(recipe, test, list(edits), places, ray)
    rows = eval_rows(
        [_for_any(m, list(edits)) for m in single],
        list(edits),
        asked,
        recipe.seed,
        model_key(recipe),
    )
    pictures = places.evaluation / "pictures"
    stored = stored_keys(pictures)
    unsampled = [row for row in rows if row["key"] not in stored]
    if unsampled:
        ray()
    plan = EvaluationPlan(rows, [], {}, pictures, places.evaluation / "scores", unsampled, [])
    evaluate(recipe, plan, places.stores)
    return _cells(rows, edits, asked, TensorStore([pictures]))


def known_edits(bank: Bank, count: int) -> dict[str, str]:
    """Instructions of the bank's general stream with the edits they ask for, a wording an edit."""
    by_wording = {
        wording: name
        for name, edit in GENERAL_EDITS.items()
        if name not in BY_CHANCE
        for wording in edit.wordings
    }
    found: dict[str, str] = {}
    for row in bank.general:
        edit = by_wording.get(row.prompt)
        if edit is not None and edit not in found.values() and len(found) < count:
            found[row.prompt] = edit
    return found


def _for_any(method: Method, instructions: Sequence[str]) -> Method:
    """The method with its one adapter (or none) for every instruction."""
    adapter = next(iter(method.adapters.values()), None)
    adapters = dict.fromkeys(instructions, adapter) if adapter else {}
    return replace(method, adapters=adapters, draws=1)


def _ask(
    recipe: Recipe,
    test: Sequence[TestSource],
    instructions: Sequence[str],
    places: Places,
    ray: Callable[[], None],
) -> list[TestSource]:
    """The photographs with the instructions for prompts, encoded."""
    encodings, asked = Encodings(recipe.model), []
    for source in test[: recipe.evaluate.photographs]:
        keys = {text: encodings.prompt(text, [Path(source.path)]) for text in instructions}
        asked.append(replace(source, teacher_prompts=keys, student_prompts=keys))
    if todo := missing(encodings.jobs.values(), stored_keys(places.encodings)):
        ray()
        encode(recipe, todo, places.encodings)
    return asked


def _cells(
    rows: Sequence[EvalRow],
    edits: dict[str, str],
    test: Sequence[TestSource],
    store: TensorStore,
) -> list[Cell]:
    paths = {source.photograph: Path(source.path) for source in test}
    found: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        picture = np.asarray(store.get(row["key"]).numpy())
        source = open_source(paths[row["photograph"]], *picture.shape[:2])
        truth = apply_edit(edits[row["effect"]], source, np.random.default_rng(0))
        found.setdefault((row["method"], row["effect"]), []).append(fidelity_db(picture, truth))
    return [
        Cell(method, None, f"general: {text}", {"generality": float(np.mean(values))})
        for (method, text), values in found.items()
    ]
