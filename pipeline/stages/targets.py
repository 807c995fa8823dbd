"""Targets: each teacher's own multi-step output y for (effect, source, draw).

A target does not depend on the student, so it is made once and cached under the content of all
that it does depend on.
"""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import Recipe
from pipeline.mirror import at_hand
from pipeline.models.fingerprint import fingerprint
from pipeline.models.lora_formats import content_hash
from pipeline.stages.encode import Collection
from pipeline.stages.teach import adapter_path
from pipeline.storage import content_key
from pipeline.types import EffectEntry, Manifest, Sample, TargetJob


def plan_targets(
    recipe: Recipe, collection: Collection, teachers: Path
) -> tuple[Manifest, list[TargetJob]]:
    """The manifest with all target keys, and the jobs that make them. Adapters must exist."""
    base = fingerprint(recipe.model.path, "transformer", "scheduler")
    entries, jobs = [], []
    for sources in collection.effects:
        path = adapter_path(recipe, sources, teachers)
        adapter_hash = content_hash(at_hand(path))
        samples: list[Sample] = []
        for sample in sources.samples:
            for draw in range(recipe.targets.draws):
                job = _job(recipe, base, str(path), adapter_hash, sample, draw)
                jobs.append(job)
                samples.append(replace(sample, target=job.key))
        held_back: list[Sample] = []
        for sample in sources.held_back:
            job = _job(recipe, base, str(path), adapter_hash, sample, 0)
            jobs.append(job)
            held_back.append(replace(sample, target=job.key))
        name, weight = sources.effect.name, sources.effect.weight
        both = tuple(samples), tuple(held_back)
        entries.append(EffectEntry(name, str(path), adapter_hash, weight, *both))
    return Manifest(tuple(entries), collection.general), jobs


def make_targets(
    recipe: Recipe, todo: Sequence[TargetJob], stores: Sequence[Path], folder: Path
) -> None:
    """Make the missing targets in a Ray Data actor pool, effects mixed within a batch."""
    from actors.pool import through_pool
    from actors.session import device_of
    from actors.target_pool import TargetActor

    pool = recipe.cluster.teacher_pool
    arguments = {
        "model": recipe.model.path,
        "device": device_of(recipe.model, pool.num_gpus),
        "dtype": recipe.model.dtype,
        "quantize": recipe.model.quantize,
        "threads": pool.threads,
        "adapters_resident": pool.adapters_resident,
        "stores": [str(s) for s in stores],
        "folder": str(folder),
        "steps": recipe.targets.steps,
        "guidance": recipe.targets.guidance,
        "keep_norm": recipe.targets.keep_norm,
    }
    # Sorting by adapter keeps the number of adapters in a batch, and so of switches, low; by
    # bucket first, for what is sampled together is of one shape.
    order = sorted(todo, key=lambda j: (j.sample.shapes, j.adapter_hash, j.key))
    rows = [job.row() for job in order]
    for _ in through_pool(rows, TargetActor, arguments, pool, recipe.targets.batch, "targets"):
        pass


def _job(
    recipe: Recipe, base: str, adapter: str, adapter_hash: str, sample: Sample, draw: int
) -> TargetJob:
    key = content_key(
        "target",
        base,
        adapter_hash,
        [list(sample.sources), sample.teacher_prompt, sample.null_prompt, sample.shapes],
        recipe.targets.steps,
        recipe.targets.guidance,
        recipe.targets.keep_norm,
        recipe.model.precision,
        recipe.seed,
        draw,
    )
    return TargetJob(key, adapter, adapter_hash, sample, zlib.crc32(key.encode()))
