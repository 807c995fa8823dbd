"""Generality: does a method still follow instructions that are no effect of the bank?

Measured on general edits whose truth is known, on the held-out photographs. Only methods that are
one set of weights can be asked: a bank of adapters would need a router's opinion first.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from pipeline.stages.evaluate import model_key
from pipeline.tensor_store import TensorStore, stored_keys

# Their outcome is a matter of chance: no one truth to be near to.
BY_CHANCE = {"noise", "dots", "lines"}


@dataclass(frozen=True)
class GeneralEdits:
    """What is asked: edits by instruction, the photographs with them for prompts, the pictures."""

    edits: Mapping[str, str]
    asked: Sequence[TestSource]
    rows: list[EvalRow]


def ask_general(
    recipe: Recipe,
    bank: Bank,
    test: Sequence[TestSource],
    methods: Sequence[Method],
    places: Places,
    ray: Callable[[], None],
) -> GeneralEdits:
    """General edits for those methods that can be asked; none where truth is unknown."""
    edits = known_edits(bank, recipe.bench.general_edits)
    single = [m for m in methods if len(set(m.adapters.values())) <= 1]
    if recipe.evaluate.truth != "miniature" or not edits or not single:
        return GeneralEdits({}, [], [])
    asked = _ask(recipe, test, list(edits), places, ray)
    any_of = [_for_any(m, list(edits)) for m in single]
    rows = eval_rows(any_of, list(edits), asked, recipe.seed, model_key(recipe))
    return GeneralEdits(edits, asked, rows)


def general_cells(general: GeneralEdits, pictures: Path) -> list[Cell]:
    """A cell a method and general edit, with ``generality`` in dB."""
    store = TensorStore([pictures])
    paths = {source.photograph: Path(source.path) for source in general.asked}
    found: dict[tuple[str, str], list[float]] = {}
    for row in general.rows:
        picture = np.asarray(store.get(row["key"]).numpy())
        source = open_source(paths[row["photograph"]], *picture.shape[:2])
        truth = apply_edit(general.edits[row["effect"]], source, np.random.default_rng(0))
        found.setdefault((row["method"], row["effect"]), []).append(fidelity_db(picture, truth))
    return [
        Cell(method, None, f"general: {text}", {"generality": float(np.mean(values))})
        for (method, text), values in found.items()
    ]


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
