"""One whole distillation, from a bank of effect LoRAs to one exported LoRA, on one screen.

Each stage first asks what is missing; with nothing missing it does nothing, and with nothing
missing anywhere Ray is not even started. So resuming is running again.

    bank -> prompts -> encode -> teach -> targets -> distill -> evaluate -> export
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from actors.session import ray_session
from pipeline.bank import Bank
from pipeline.config import Recipe, recipe_hash
from pipeline.evaluation.effectbench import adapter_file, standard_methods
from pipeline.evaluation.report import markdown_table
from pipeline.places import Places
from pipeline.progress import OnStage, Reporter, ignore
from pipeline.prompting import EffectPrompts
from pipeline.stages.distill import History, OnMetrics, OnPreview, distill
from pipeline.stages.encode import Collection, collect, encode, missing
from pipeline.stages.evaluate import evaluate, plan_evaluation, write_evaluation
from pipeline.stages.export import export_student
from pipeline.stages.judge_report import with_judges
from pipeline.stages.prompts import write_prompts
from pipeline.stages.publish import Publisher
from pipeline.stages.student import finished_student, run_key_of, save_student, student_weights
from pipeline.stages.targets import make_targets, plan_targets
from pipeline.stages.teach import adapter_path, teach_all, untaught
from pipeline.stages.warm_start import warm_start
from pipeline.stages.wording import worded
from pipeline.tensor_store import stored_keys
from pipeline.types import Manifest

STAGES = ("prompts", "encode", "teach", "targets", "distill", "evaluate", "export")
StartRay = Callable[[], None]


@dataclass(frozen=True)
class Prepared:
    """All that a student learns from: prompts, encodings, teachers and targets, by keys."""

    prompts: list[EffectPrompts]
    collection: Collection
    manifest: Manifest


def run(recipe: Recipe, bank: Bank, until: str = "export") -> Places:
    """Bring a run up to date as far as a stage, and return where everything is."""
    assert until in STAGES
    places = Places.of(recipe.output)
    with ExitStack() as stack:

        def ray() -> None:
            stack.enter_context(ray_session(recipe.cluster))

        reporter = stack.enter_context(Reporter(recipe, places))
        on_stage = reporter.stage
        prepared = prepare(recipe, bank, places, ray, until, on_stage=on_stage)
        if prepared is None or until == "targets":
            return places

        key = run_key_of(recipe, prepared.manifest)
        reporter.distils(key)
        publisher, history = Publisher(recipe, bank, places), History(places.history, key)
        on_stage("distill", recipe.distill.rounds, 0)
        lora = distilled(
            recipe,
            prepared.manifest,
            places,
            ray,
            publisher.progress(history),
            publisher.preview,
        )
        if until == "distill":
            return places

        test = prepared.collection.test
        methods = standard_methods(recipe, prepared.manifest, adapter_file(lora))
        plan = plan_evaluation(recipe, bank, test, methods, places.evaluation)
        on_stage("evaluate", len(plan.rows), len(plan.rows) - len(plan.unsampled))
        if plan.unsampled or plan.unjudged:
            ray()
        scores = evaluate(recipe, plan, places.stores)
        report = write_evaluation(
            places.output, recipe, bank, test, scores, history.counters(), history.series()
        )
        report = with_judges(recipe, bank, test, scores, report, places, ray)
        if until == "evaluate":
            return places

        on_stage("export", 0, 0)
        export_student(
            student_weights(lora),
            recipe.student.lora,
            recipe.student,
            prepared.prompts,
            recipe.model,
            recipe_hash(recipe),
            places.student,
            markdown_table(report),
        )
        paths = {
            e.effect.name: adapter_path(recipe, e, places.teachers)
            for e in prepared.collection.effects
        }
        publisher.publish(report, paths, lora)
    return places


def prepare(
    recipe: Recipe,
    bank: Bank,
    places: Places,
    ray: StartRay,
    until: str = "targets",
    pairs: bool = False,
    on_stage: OnStage = ignore,
) -> Prepared | None:
    """Everything before the student, as far as ``until``; None if that is before the targets.

    ``pairs`` encodes the pairs also of effects that bring their adapter.
    """
    prompts = write_prompts(recipe, worded(recipe, bank, places, ray), places, ray)
    if until == "prompts":
        return None

    collection, jobs = collect(recipe, bank, prompts, pairs)
    if todo := missing(jobs.values(), stored_keys(places.encodings)):
        on_stage("encode", len(jobs), len(jobs) - len(todo))
        ray()
        encode(recipe, todo, places.encodings)
    if until == "encode":
        return None

    if taught := untaught(recipe, collection.effects, places.teachers):
        on_stage("teach", len(taught), 0)
        ray()
        teach_all(recipe, taught, [places.encodings])
    if until == "teach":
        return None

    manifest, targets = plan_targets(recipe, collection, places.teachers)
    made = stored_keys(places.targets)
    if wanted := [job for job in targets if job.key not in made]:
        on_stage("targets", len(targets), len(targets) - len(wanted))
        ray()
        make_targets(recipe, wanted, [places.encodings], places.targets)
    return Prepared(prompts, collection, manifest)


def distilled(
    recipe: Recipe,
    manifest: Manifest,
    places: Places,
    ray: StartRay,
    progress: OnMetrics,
    preview: OnPreview,
) -> Path:
    """The student's LoRA file: a finished one if there is one, else distilled now."""
    key = run_key_of(recipe, manifest)
    if (done := finished_student(places, key)) is not None:
        return done
    ray()
    warm = warm_start(recipe, manifest, places.starts, places.stores)
    final = distill(recipe, manifest, places.stores, places.training, key, progress, preview, warm)
    return save_student(final, recipe, places, key)
