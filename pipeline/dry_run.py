"""``--dry-run``: what would run, with sizes and forward counts, without writing anything."""

from collections.abc import Collection

import numpy as np

from pipeline.bank import Bank
from pipeline.config import Recipe, StudentGroupSettings, recipe_hash
from pipeline.memory_budget import Budget, Load, describe, student_budget, teacher_budget
from pipeline.models.lora_formats import transformer_shapes
from pipeline.models.sizes import base_size
from pipeline.places import Places
from pipeline.plan import round_slots
from pipeline.stages.distill import plan_settings
from pipeline.stages.encode import collect, missing
from pipeline.stages.grow import known_by, start_of
from pipeline.stages.prompts import plan_prompts
from pipeline.stages.targets import plan_targets
from pipeline.stages.teach import untaught
from pipeline.tensor_store import stored_keys
from pipeline.types import Bucket, EffectEntry, Manifest

# A prompt's tokens, estimated: its words, and what Qwen2.5-VL makes of a picture of 384 x 384.
WORDS, WORDS_A_PICTURE = 128, 196


def describe_run(recipe: Recipe, bank: Bank, until: str) -> str:
    """A line a stage: what is missing, and the transformer forwards (a sample each) it takes."""
    places = Places.of(recipe.output)
    start = start_of(recipe)
    if start is not None:
        # What it knows keeps its triggers. Orthogonal ones are the run's to choose, on Ray.
        bank = known_by(start, bank)
    planned = plan_prompts(recipe, bank, places)
    prompts, asks = planned.prompts, len(planned.missing)
    to_ask = f", {asks} captions to ask for (the rest follows from them)" if asks else ""
    collection, jobs = collect(recipe, bank, prompts)
    todo = missing(jobs.values(), stored_keys(places.encodings))
    every = [*collection.general, *(s for e in collection.effects for s in e.samples)]
    buckets = {sample.shapes for sample in every}
    images = sum(job.kind == "image" for job in todo)
    teachers = untaught(recipe, collection.effects, places.teachers)
    samples = sum(len(e.samples) for e in collection.effects) * recipe.targets.draws
    samples += sum(len(e.held_back) for e in collection.effects)
    if teachers:
        targets = samples
        note = " (more may be cached: known once the teachers are)"
    else:
        _, wanted = plan_targets(recipe, collection, places.teachers)
        made = stored_keys(places.targets)
        targets, note = sum(job.key not in made for job in wanted), ""
    guided = 2 if recipe.targets.guidance > 1 else 1
    student_cost, teacher_cost = forwards_per_student_update(recipe, bank)
    group = recipe.cluster.student_group
    updates = recipe.distill.rounds * recipe.distill.batch * group.logical_ranks
    pictures = len(collection.test) * len(bank.effects) * recipe.evaluate.draws
    nfe = 2 * recipe.targets.steps * guided + recipe.student.steps
    taught = len(teachers) * recipe.teach.steps * recipe.teach.batch * 3
    memory = memory_lines(recipe, buckets, len(bank.effects))
    lines = [
        f"recipe {recipe.name}, hash {recipe_hash(recipe)}, output {recipe.output}",
        f"prompts   {len(prompts)} effects{to_ask}",
        f"encode    {len(todo)} of {len(jobs)} missing: {images} images, "
        f"{len(todo) - images} prompts; edits of {len(buckets)} shapes",
        f"teach     {len(teachers)} of {len(bank.effects)} teachers missing: {taught:,} forwards",
        f"targets   {targets} of {samples} missing{note}: "
        f"{targets * recipe.targets.steps * guided:,} forwards",
        f"{_warm_start(recipe)}"
        f"distill   {recipe.distill.rounds} rounds of {recipe.distill.batch} samples on "
        f"{_shared_out(group)}: {student_cost:.1f} forwards a student "
        f"sample in the student group, {teacher_cost:.1f} in the teacher pool, "
        f"{updates * (student_cost + teacher_cost):,.0f} in all\n" + "\n".join(memory),
        f"evaluate  {pictures} pictures a method: {pictures * nfe:,} forwards",
        f"export    LoRA of {lora_parameters(recipe):,} parameters",
    ]
    names = ["recipe", "prompts", "encode", "teach", "targets", "distill", "evaluate", "export"]
    return "\n".join(lines[: names.index(until) + 1])


def _warm_start(recipe: Recipe) -> str:
    """The line of the warm start, where there is one."""
    grows, start = recipe.grow.start_from is not None, recipe.warm_start
    if start is None:
        return ""
    # A backward counts as two forwards; what is to be kept takes a frozen forward besides.
    each = 3 + (3 + 1 if grows else 0)
    if start.follow == "teachers":
        each += 1 if recipe.targets.guidance == 1 else 2
    forwards, after = start.steps * (start.batch * each + start.general * 4), start.follow
    return f"start     {start.steps} steps of {start.batch} on the {after}: {forwards:,} forwards\n"


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
    # A teacher at guidance 1 has no unconditional half.
    scores = 1 if d.guidance == 1 else 2
    return student, recipe.student.steps + scores + (1 + scores) * ts


def memory_lines(recipe: Recipe, buckets: Collection[Bucket], effects: int) -> list[str]:
    """What a process of either half holds, by part, and the cards that it fits on."""
    base, load = base_size(recipe.model.path), memory_load(recipe, buckets, effects)
    student, teacher = student_budget(base, load), teacher_budget(base, load)
    group, pool = recipe.cluster.student_group, recipe.cluster.teacher_pool
    smallest = group.shard and not isinstance(group.workers, int)
    name = f"a student process, one of {group.min_workers}" if smallest else "a student process"
    lines = describe(name, student) + describe("a teacher process", teacher)
    if 0 < group.num_gpus + pool.num_gpus <= 1:
        both = Budget({"student process": student.total, "teacher process": teacher.total})
        lines += describe("one of each on one card", both)
    return lines


def memory_load(recipe: Recipe, buckets: Collection[Bucket], effects: int) -> Load:
    """What a recipe asks of a process, in its largest bucket."""
    d, group = recipe.distill, recipe.cluster.student_group
    terms = 1 + (d.losses.dmd_ts > 0) + (d.losses.ta_fm > 0 and d.ta_fm_batch == 0)
    most = min(d.batch, group.micro_batch or d.batch)
    anchors = -(-d.ta_fm_batch // -(-d.batch // most))
    scores = d.batch * (1 + (d.losses.dmd_ts > 0))
    pictures = [sum(rows * columns for _, rows, columns in shapes) for shapes in buckets]
    sources = max(len(shapes) - 1 for shapes in buckets)
    return Load(
        bytes_a_weight=4 if recipe.model.dtype == "float32" else 2,
        quantized=recipe.model.quantize is not None,
        lora=lora_parameters(recipe),
        # Of an elastic group, what each holds when it is smallest.
        workers=group.min_workers if group.shard else 1,
        checkpointing=d.gradient_checkpointing,
        average=d.ema > 0,
        samples=terms * most + anchors,
        scored=scores * (1 if d.guidance == 1 else 2),
        tokens=max(pictures) + WORDS + sources * WORDS_A_PICTURE,
        teachers=min(recipe.cluster.teacher_pool.adapters_resident, effects),
    )


def lora_parameters(recipe: Recipe) -> int:
    """Parameters of the student's LoRA."""
    shapes = transformer_shapes(recipe.model.path)
    rank = recipe.student.lora.rank
    modules = tuple(f".{module}" for module in recipe.student.lora.modules)
    return sum(rank * sum(s) for name, s in shapes.items() if name.endswith(modules))


def _shared_out(group: StudentGroupSettings) -> str:
    if isinstance(group.workers, int):
        return f"{group.workers} workers"
    return f"each of {group.logical_ranks} logical ranks, shared out to {group.size}"
