"""Warm start: regression on the cached targets, before the first on-policy round.

The coarse half of coarse-to-fine, done where it is cheap: plain regression on what every teacher
made of every source, under the student's prompts, with no rollout and no fake score. Or on the
teachers' own velocity there: the mean that regression finds, without the samples' chance.
Student and fake score both start from it: the fake score then knows the student from round 0. Off
in the published recipe, which has trajectory anchoring (TA-FM) within the rounds only.

A student that grows learns its new effects so, and keeps the old ones.
"""

from pathlib import Path

from pipeline.config import Recipe
from pipeline.distill.lesson import Lesson, Pair
from pipeline.models.fingerprint import fingerprint
from pipeline.models.lora_formats import content_hash
from pipeline.stages.general_rows import general_rows
from pipeline.stages.grow import new_effects, start_of
from pipeline.stages.teach import learn, seed_of
from pipeline.storage import content_key, is_whole
from pipeline.types import EffectEntry, Manifest, Teacher

Pairs = tuple[Pair, ...]

FIELD = "warm_start.general"


def warm_start(recipe: Recipe, manifest: Manifest, folder: Path, stores: list[Path]) -> Path | None:
    """The LoRA that student and fake score start from; None where the recipe has no warm start.

    Cached under all that it depends on. A collection without (new) effects has nothing to learn.
    """
    start = start_of(recipe)
    settings = recipe.warm_start
    names = [e.name for e in manifest.effects]
    new = new_effects(recipe, names) if start else set(names)
    taught = [e for e in manifest.effects if e.name in new]
    pairs = _pairs(taught)
    if settings is None or not pairs:
        return None
    known = _pairs([e for e in manifest.effects if e.name not in new])
    general = general_rows(manifest, len(pairs), FIELD) if settings.general else ()
    lora = recipe.student.lora
    seed = recipe.seed if recipe.distill.seed is None else recipe.distill.seed
    key = content_key(
        "warm start",
        fingerprint(recipe.model.path, "transformer"),
        _content(pairs),
        settings.content(),
        lora.model_dump(mode="json"),
        recipe.model.precision,
        seed,
        *([content_hash(start.lora), _content(known)] if start else []),
        *([_content(general)] if general else []),
    )
    path = folder / f"warm-start-{key}.safetensors"
    if not is_whole(path):
        # A worker's folder may be another than the driver's.
        begun = start.lora.resolve() if start else None
        own = seed_of(seed, "warm start")
        teachers = _teachers(taught) if settings.follow == "teachers" else ()
        lesson = Lesson("warm start", pairs, path, own, "student", begun, known, general, teachers)
        learn(recipe, settings.model_copy(update={"lora": lora}), [lesson], stores)
    return path


def _pairs(effects: list[EffectEntry]) -> Pairs:
    return tuple(
        (sample, sample.target)
        for effect in effects
        for sample in effect.samples
        if sample.target is not None
    )


def _teachers(effects: list[EffectEntry]) -> tuple[Teacher, ...]:
    """Of each pair."""
    return tuple(effect.teacher for effect in effects for s in effect.samples if s.target)


def _content(pairs: Pairs) -> list[object]:
    return [[list(sample.sources), sample.student_prompt, target] for sample, target in pairs]
