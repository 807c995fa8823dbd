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
from pipeline.places import Places
from pipeline.stages.distill import History, distill
from pipeline.stages.encode import collect, encode, missing
from pipeline.stages.evaluate import evaluate, write_evaluation
from pipeline.stages.export import export_student
from pipeline.stages.prompts import write_prompts
from pipeline.stages.publish import Publisher
from pipeline.stages.student import finished_student, run_key_of, save_student
from pipeline.stages.targets import make_targets, plan_targets
from pipeline.stages.teach import adapter_path, teach_all, untaught
from pipeline.tensor_store import stored_keys

STAGES = ("prompts", "encode", "teach", "targets", "distill", "evaluate", "export")


def run(recipe: Recipe, bank: Bank, until: str = "export") -> Places:
    """Bring a run up to date as far as a stage, and return where everything is."""
    places, last = Places(Path(recipe.output)), STAGES.index(until)
    prompts = write_prompts(recipe, bank, places.prompts)
    collection, jobs = collect(recipe, bank, prompts)
    publisher = Publisher(recipe, bank, places)
    with ExitStack() as stack:

        def ray() -> None:
            stack.enter_context(ray_session(recipe.cluster))

        if last >= STAGES.index("encode"):
            if todo := missing(jobs.values(), stored_keys(places.encodings)):
                ray()
                encode(recipe, todo, places.encodings)
        if last >= STAGES.index("teach"):
            if taught := untaught(recipe, collection.effects, places.teachers):
                ray()
                teach_all(recipe, taught, [places.encodings])
        if last >= STAGES.index("targets"):
            manifest, targets = plan_targets(recipe, collection, places.teachers)
            made = stored_keys(places.targets)
            if wanted := [job for job in targets if job.key not in made]:
                ray()
                make_targets(recipe, wanted, [places.encodings], places.targets)
        if last >= STAGES.index("distill"):
            key, history = run_key_of(recipe, manifest), History(places.history)
            lora = finished_student(places, key)
            if lora is None:
                ray()
                checkpoint = distill(
                    recipe,
                    manifest,
                    places.stores,
                    places.training,
                    key,
                    publisher.progress(history),
                )
                lora = save_student(checkpoint, recipe, places, key)
        if last >= STAGES.index("evaluate"):
            evaluation = evaluate(
                recipe, prompts, manifest, collection.test, lora, places, ray
            )
            report = write_evaluation(places.output, recipe, evaluation, history.series())
        if last >= STAGES.index("export"):
            export_student(lora, recipe, prompts, report.markdown, places.student)
            adapters = {e.effect.name: adapter_path(recipe, e, places.teachers)
                        for e in collection.effects}
            publisher.publish(report, adapters, lora, recipe_hash(recipe))
    return places
