"""Teach: one LoRA an effect from its pairs, for effects whose bank entry brings none."""

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pipeline.config import Recipe, TeachSettings
from pipeline.distill.lesson import Lesson
from pipeline.models.fingerprint import fingerprint
from pipeline.stages.encode import EffectSources
from pipeline.storage import content_key, is_whole

# How often the bar is drawn, at least.
LOOK_SECONDS = 2.0


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
    """Train LoRAs, a Ray task each; a bar counts all their steps."""
    import ray

    from actors.lesson_board import LessonBoard
    from actors.session import device_of
    from actors.teach_tasks import Guide, teach_effect
    from pipeline.distill.teach import TeachPlan

    pool, targets = recipe.cluster.teacher_pool, recipe.targets
    guide = Guide(pool.adapters_resident, targets.guidance, targets.keep_norm)
    task = teach_effect.options(
        num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, resources=pool.resources
    )
    board = LessonBoard.remote()  # type: ignore[attr-defined]
    pending = []
    for lesson in lessons:
        # By name, so that a setting which the plan does not know is an error.
        plan = TeachPlan(seed=lesson.seed, **settings.model_dump(exclude={"lora", "follow"}))
        pending.append(
            task.remote(
                lesson,
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
                board,
            )
        )
    losses: dict[str, float] = {}
    seen: set[str] = set()
    label = lessons[0].name if len(lessons) == 1 else "teach"
    with tqdm(total=settings.steps * len(lessons), desc=label, unit="step") as bar:
        while pending:
            done, pending = ray.wait(pending, timeout=LOOK_SECONDS)
            losses |= dict(ray.get(done))
            going = {k: v for k, v in ray.get(board.look.remote()).items() if k not in losses}
            pass_over(bar, sum(going[name].begun for name in going.keys() - seen))
            seen |= going.keys()
            bar.update(settings.steps * len(losses) + sum(s.steps for s in going.values()) - bar.n)
            last = [*going.values()]
            loss = f", loss {sum(s.loss for s in last) / len(last):.3f}" if last else ""
            bar.set_postfix_str(f"{len(losses)} of {len(lessons)} LoRAs{loss}")


def pass_over(bar: "tqdm[Any]", steps: int) -> None:
    """Steps that were done before this run: they are there, and say nothing of its rate."""
    for counter in ("initial", "n", "last_print_n"):
        setattr(bar, counter, getattr(bar, counter) + steps)
