"""Teach: one LoRA an effect from its pairs, for effects whose bank entry brings none."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from pipeline.config import Recipe, TeachSettings
from pipeline.models.fingerprint import fingerprint
from pipeline.stages.encode import EffectSources
from pipeline.storage import content_key, is_whole
from pipeline.types import Role, Sample, Teacher


def adapter_path(recipe: Recipe, sources: EffectSources, folder: Path) -> Path:
    """Where an effect's adapter is: the bank's own file, or a cached one keyed by content."""
    if sources.effect.adapter is not None:
        return sources.effect.adapter
    key = content_key(
        "teacher",
        fingerprint(recipe.model.path, "transformer"),
        [[list(s.sources), s.teacher_prompt, s.null_prompt, y] for s, y in sources.pairs],
        recipe.teach.content() | {"lora": recipe.teach.lora.model_dump(mode="json")},
        recipe.model.precision,
        recipe.seed,
    )
    return folder / f"{sources.effect.name}-{key}.safetensors"


def untaught(
    recipe: Recipe, effects: Sequence[EffectSources], folder: Path
) -> list[tuple[EffectSources, Path]]:
    """The effects whose adapter has yet to be trained."""
    to_teach = [e for e in effects if e.effect.adapter is None]
    places = [(e, adapter_path(recipe, e, folder)) for e in to_teach]
    return [(e, path) for e, path in places if not is_whole(path)]


@dataclass(frozen=True)
class Lesson:
    """A LoRA to train: pairs of (condition, target key), where to write it, its own seed.

    The rest: see ``TeachJob``.
    """

    name: str
    pairs: tuple[tuple[Sample, str], ...]
    out: Path
    seed: int
    role: Role = "teacher"
    start: Path | None = None
    known: tuple[tuple[Sample, str], ...] = ()
    general: tuple[tuple[Sample, str], ...] = ()
    teachers: tuple[Teacher, ...] = ()


def teach_all(
    recipe: Recipe, todo: Sequence[tuple[EffectSources, Path]], stores: Sequence[Path]
) -> None:
    """Train the missing teachers, several at once as Ray tasks."""
    lessons = [
        # Each effect has its own noise, whatever else is in the bank.
        Lesson(s.effect.name, s.pairs, path, seed_of(recipe.seed, s.effect.name))
        for s, path in todo
    ]
    learn(recipe, recipe.teach, lessons, stores)


def seed_of(seed: int, name: str) -> int:
    """A lesson's seed, by its name."""
    return zlib.crc32(f"{seed}:{name}".encode()) % 2**31


def learn(
    recipe: Recipe, settings: TeachSettings, lessons: Sequence[Lesson], stores: Sequence[Path]
) -> None:
    """Train LoRAs, a Ray task each."""
    import ray

    from actors.session import device_of
    from actors.teach_tasks import Guide, TeachJob, teach_effect
    from pipeline.distill.teach import TeachPlan

    pool, targets = recipe.cluster.teacher_pool, recipe.targets
    guide = Guide(pool.adapters_resident, targets.guidance, targets.keep_norm)
    task = teach_effect.options(
        num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, resources=pool.resources
    )
    pending = []
    for lesson in lessons:
        # By name, so that a setting which the plan does not know is an error.
        plan = TeachPlan(seed=lesson.seed, **settings.model_dump(exclude={"lora", "follow"}))
        pending.append(
            task.remote(
                TeachJob(
                    lesson.name,
                    lesson.pairs,
                    str(lesson.out),
                    lesson.role,
                    None if lesson.start is None else str(lesson.start.resolve()),
                    lesson.known,
                    lesson.general,
                    lesson.teachers,
                ),
                recipe.model.path,
                device_of(recipe.model, pool.num_gpus),
                recipe.model.dtype,
                # Several run at once: more threads than CPUs asked for would fight each other.
                max(1, int(pool.num_cpus)),
                settings.lora,
                plan,
                tuple(str(s) for s in stores),
                guide,
                recipe.model.quantize,
            )
        )
    with tqdm(total=len(pending), desc="teach", unit="effect") as bar:
        while pending:
            done, pending = ray.wait(pending)
            for effect, loss in ray.get(done):
                bar.update()
                bar.set_postfix_str(f"{effect} loss {loss:.3f}")
