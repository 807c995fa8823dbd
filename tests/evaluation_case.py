"""A tiny evaluation: two effects, random weights, a recipe of few steps."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.bank import Bank, Effect
from pipeline.config import Recipe
from pipeline.evaluation.effectbench import Method, TestSource, adapter_file, standard_methods
from pipeline.models.lora_formats import content_hash
from pipeline.stages.evaluate import EvaluationPlan, plan_evaluation
from pipeline.types import EffectEntry, Manifest
from tests.tiny_model import write_test_sources, write_tiny_lora, write_tiny_model

EFFECTS = {"sepia": "tone", "snow": "textured"}


@dataclass
class Case:
    recipe: Recipe
    bank: Bank
    manifest: Manifest
    test: list[TestSource]
    student: Path
    store: Path
    cache: Path

    def plan(self) -> EvaluationPlan:
        return plan_evaluation(self.recipe, self.bank, self.test, self.methods(), self.cache)

    def methods(self) -> list[Method]:
        return standard_methods(self.recipe, self.manifest, adapter_file(self.student))


def make_case(folder: Path, photographs: int = 2, **evaluate: Any) -> Case:
    """Everything on disk that an evaluation reads."""
    names = list(EFFECTS)
    model = write_tiny_model(folder / "model")
    entries = []
    for seed, name in enumerate(names):
        path = write_tiny_lora(folder / f"{name}.safetensors", seed)
        entries.append(EffectEntry(name, str(path), content_hash(path), 1.0, ()))
    effects = tuple(
        Effect(name, f"make it {name}", Path(entry.adapter), EFFECTS[name], 1.0, "", None, None)
        for name, entry in zip(names, entries, strict=True)
    )
    recipe = Recipe.model_validate(
        {
            "name": "tiny",
            "bank": str(folder),
            "output": str(folder / "out"),
            "model": {"path": str(model), "device": "cpu"},
            "targets": {"steps": 3, "guidance": 4.0},
            "student": {"steps": 4},
            "evaluate": {"batch": 4, "bootstrap": 100} | evaluate,
        }
    )
    return Case(
        recipe=recipe,
        bank=Bank(folder, effects, (), (), (), ()),
        manifest=Manifest(tuple(entries), ()),
        test=write_test_sources(folder / "test", folder / "encodings", names, photographs),
        student=write_tiny_lora(folder / "student.safetensors", 99),
        store=folder / "encodings",
        cache=folder / "cache",
    )
