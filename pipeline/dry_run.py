"""``--dry-run``: what would run, with sizes and forward counts, without writing anything."""

from pathlib import Path

import numpy as np

from pipeline.bank import Bank
from pipeline.config import Recipe, recipe_hash
from pipeline.models.lora_formats import transformer_shapes
from pipeline.places import Places
from pipeline.plan import round_slots
from pipeline.prompting import make_prompts
from pipeline.stages.distill import plan_settings
from pipeline.stages.encode import collect, missing
from pipeline.stages.targets import plan_targets
from pipeline.stages.teach import untaught
from pipeline.tensor_store import stored_keys
from pipeline.types import EffectEntry, Manifest


def describe_run(recipe: Recipe, bank: Bank, until: str) -> str:
    """A line a stage: what is missing, and the transformer forwards (a sample each) it takes."""
    places = Places(Path(recipe.output))
    prompts = make_prompts(bank.effects, recipe.prompts, recipe.seed)
    collection, jobs = collect(recipe, bank, prompts)
    todo = missing(jobs.values(), stored_keys(places.encodings))
    every = [*collection.general, *(s for e in collection.effects for s in e.samples)]
    buckets = {sample.shapes for sample in every}
    images = sum(job.kind == "image" for job in todo)
    teachers = untaught(recipe, collection.effects, places.teachers)
    samples = sum(len(e.samples) for e in collection.effects) * recipe.targets.draws
    if teachers:
        targets = samples
        note = " (more may be cached: known once the teachers are)"
    else:
        _, wanted = plan_targets(recipe, collection, places.teachers)
        made = stored_keys(places.targets)
        targets, note = sum(job.key not in made for job in wanted), ""
    guided = 2 if recipe.targets.guidance > 1 else 1
    student_cost, teacher_cost = forwards_per_student_update(recipe, bank)
    workers = recipe.cluster.student_group.max_workers
    updates = recipe.distill.rounds * recipe.distill.batch * workers
    pictures = len(collection.test) * len(bank.effects) * recipe.evaluate.draws
    nfe = 2 * recipe.targets.steps * guided + recipe.student.steps
    taught = len(teachers) * recipe.teach.steps * recipe.teach.batch * 3
    lines = [
        f"recipe {recipe.name}, hash {recipe_hash(recipe)}, output {recipe.output}",
        f"prompts   {len(prompts)} effects",
        f"encode    {len(todo)} of {len(jobs)} missing: {images} images, "
        f"{len(todo) - images} prompts; edits of {len(buckets)} shapes",
        f"teach     {len(teachers)} of {len(bank.effects)} teachers missing: {taught:,} forwards",
        f"targets   {targets} of {samples} missing{note}: "
        f"{targets * recipe.targets.steps * guided:,} forwards",
        f"distill   {recipe.distill.rounds} rounds of {recipe.distill.batch} samples on "
        f"{workers} workers: {student_cost:.1f} forwards a student "
        f"sample in the student group, {teacher_cost:.1f} in the teacher pool, "
        f"{updates * (student_cost + teacher_cost):,.0f} in all",
        f"evaluate  {pictures} pictures a method: {pictures * nfe:,} forwards",
        f"export    LoRA of {lora_parameters(recipe):,} parameters",
    ]
    names = ["recipe", "prompts", "encode", "teach", "targets", "distill", "evaluate", "export"]
    return "\n".join(lines[: names.index(until) + 1])


def forwards_per_student_update(recipe: Recipe, bank: Bank) -> tuple[float, float]:
    """Expected (student group, teacher pool) forwards a student sample, from the plan itself.

    The run's own figures are counted by hooks; this is the estimate before there is a run.
    """
    effects = tuple(EffectEntry(e.name, "", "", e.weight, ()) for e in bank.effects)
    settings = plan_settings(recipe, Manifest(effects, ()))
    some = tuple(1 for _ in effects)
    settings = type(settings)(**{**vars(settings), "samples": some, "general": len(bank.general)})
    slots = [slot for r in range(50) for slot in round_slots(settings, r)]
    share = float(np.mean([slot.effect is not None for slot in slots]))
    d = recipe.distill
    ts = share if d.losses.dmd_ts > 0 else 0.0
    anchors = d.ta_fm_batch / d.batch if d.ta_fm_batch else share
    student = 3 * d.fake_updates + 3 + 1 + 4 * ts
    student += 3 * anchors if d.losses.ta_fm > 0 else 0.0
    return student, recipe.student.steps + 2 + 3 * ts


def lora_parameters(recipe: Recipe) -> int:
    """Parameters of the student's LoRA."""
    shapes = transformer_shapes(recipe.model.path)
    rank = recipe.student.lora.rank
    modules = tuple(f".{module}" for module in recipe.student.lora.modules)
    return sum(rank * sum(s) for name, s in shapes.items() if name.endswith(modules))
