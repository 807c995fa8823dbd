"""One whole distillation, from a bank of effect LoRAs to one exported LoRA, on one screen.

Each stage first asks what is missing; with nothing missing it does nothing, and with nothing
missing anywhere Ray is not even started. So resuming is running again.

    bank -> prompts -> encode -> teach -> targets -> distill -> evaluate -> export
"""

from contextlib import ExitStack
from pathlib import Path

from actors.session import ray_session
from pipeline.bank import Bank
from pipeline.config import Recipe, recipe_hash
from pipeline.evaluation.report import markdown_table
from pipeline.places import Places
from pipeline.stages.distill import History, distill
from pipeline.stages.encode import collect, encode, missing
from pipeline.stages.evaluate import evaluate, plan_evaluation, write_evaluation
from pipeline.stages.export import export_student
from pipeline.stages.prompts import write_prompts
from pipeline.stages.publish import Publisher
from pipeline.stages.student import finished_student, run_key_of, save_student, student_weights
from pipeline.stages.targets import make_targets, plan_targets
from pipeline.stages.teach import adapter_path, teach_all, untaught
from pipeline.tensor_store import stored_keys

STAGES = ("prompts", "encode", "teach", "targets", "distill", "evaluate", "export")


def run(recipe: Recipe, bank: Bank, until: str = "export") -> Places:
    """Bring a run up to date as far as a stage, and return where everything is."""
    assert until in STAGES
    places = Places(Path(recipe.output))
    with ExitStack() as stack:

        def ray() -> None:
            stack.enter_context(ray_session(recipe.cluster))

        prompts = write_prompts(recipe, bank, places.prompts)
        if until == "prompts":
            return places

        collection, jobs = collect(recipe, bank, prompts)
        if todo := missing(jobs.values(), stored_keys(places.encodings)):
            ray()
            encode(recipe, todo, places.encodings)
        if until == "encode":
            return places

        if taught := untaught(recipe, collection.effects, places.teachers):
            ray()
            teach_all(recipe, taught, [places.encodings])
        if until == "teach":
            return places

        manifest, targets = plan_targets(recipe, collection, places.teachers)
        made = stored_keys(places.targets)
        if wanted := [job for job in targets if job.key not in made]:
            ray()
            make_targets(recipe, wanted, [places.encodings], places.targets)
        if until == "targets":
            return places

        publisher, history = Publisher(recipe, bank, places), History(places.history)
        key = run_key_of(recipe, manifest)
        lora = finished_student(places, key)
        if lora is None:
            ray()
            progress = publisher.progress(history)
            final = distill(recipe, manifest, places.stores, places.training, key, progress)
            lora = save_student(final, recipe, places, key)
        if until == "distill":
            return places

        plan = plan_evaluation(recipe, bank, manifest, collection.test, lora, places.evaluation)
        if plan.unsampled or plan.unjudged:
            ray()
        scores = evaluate(recipe, plan, places.stores)
        report = write_evaluation(
            places.output,
            recipe,
            bank,
            collection.test,
            scores,
            history.counters(),
            history.series(),
        )
        if until == "evaluate":
            return places

        export_student(
            student_weights(lora),
            recipe.student.lora,
            recipe.student,
            prompts,
            recipe.model,
            recipe_hash(recipe),
            places.student,
            markdown_table(report),
        )
        paths = {
            e.effect.name: adapter_path(recipe, e, places.teachers) for e in collection.effects
        }
        publisher.publish(report, paths, lora)
    return places
