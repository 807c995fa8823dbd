"""The rest of the report: the judges' scores, and what a model's captions took."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace

from pipeline.bank import Bank
from pipeline.config import Recipe
from pipeline.evaluation.effectbench import TestSource, whole_photograph
from pipeline.evaluation.field_report import field_estimates, field_table, with_field
from pipeline.evaluation.report import Report, write_report
from pipeline.places import Places
from pipeline.stages.evaluate import Evaluation
from pipeline.stages.judge import judge
from pipeline.storage import write_atomic


def with_judges(
    recipe: Recipe,
    bank: Bank,
    test: Sequence[TestSource],
    evaluation: Evaluation,
    report: Report,
    places: Places,
    ray: Callable[[], None],
) -> Report:
    """Judge the pictures of an evaluation; the report, on disk too, with what was found.

    Raises:
        InputError: a judge's folder or endpoint cannot be used, or left judgements open.
    """
    sections = []
    judged = judge(recipe, bank, test, evaluation.rows, evaluation.pictures, places.judgements, ray)
    if judged is not None:
        scores = judged.scores
        if recipe.evaluate.truth == "miniature":
            scores = [replace(s, photograph=whole_photograph(s.photograph)) for s in scores]
        estimates = field_estimates(scores, recipe.evaluate.bootstrap, recipe.seed)
        report = with_field(report, estimates, judged.agreement)
        write_report(report, places.output / "report.json")
        sections.append(field_table(report, judged.agreement, judged.notes))
    if recipe.prompts.endpoint is not None and places.prompts_cost.exists():
        cost = json.loads(places.prompts_cost.read_bytes())
        sections.append(f"## Captions\n\n{cost['text']}\n")
    if sections:
        path = places.output / "report.md"
        write_atomic(path, "\n".join([path.read_text(), *sections]).encode())
    return report
