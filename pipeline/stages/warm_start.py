"""Warm start: flow matching on the cached targets, before the first on-policy round.

The coarse half of coarse-to-fine, done where it is cheap: plain regression on what every teacher
made of every source, under the student's prompts, with no rollout and no fake score. Student and
fake score both start from it: the fake score then knows the student from round 0. Off in the
published recipe, which has trajectory anchoring (TA-FM) within the rounds only.
"""

from dataclasses import replace
from pathlib import Path

from pipeline.config import Recipe
from pipeline.models.fingerprint import fingerprint
from pipeline.stages.teach import Lesson, learn, seed_of
from pipeline.storage import content_key, is_whole
from pipeline.types import Manifest, Sample


def warm_start(recipe: Recipe, manifest: Manifest, folder: Path, stores: list[Path]) -> Path | None:
    """The LoRA that student and fake score start from; None where the recipe has no warm start.

    Cached under all that it depends on. A collection without effects has nothing to learn, and a
    student that grows has its start.
    """
    settings = recipe.distill.warm_start
    pairs = tuple(
        (_as_student(sample), sample.target)
        for effect in manifest.effects
        for sample in effect.samples
        if sample.target is not None
    )
    if settings is None or not pairs or recipe.grow.start_from is not None:
        return None
    lora = recipe.student.lora
    seed = recipe.seed if recipe.distill.seed is None else recipe.distill.seed
    key = content_key(
        "warm start",
        fingerprint(recipe.model.path, "transformer"),
        [[list(s.sources), s.student_prompt, target] for s, target in pairs],
        settings.model_dump(mode="json", exclude={"lora"}),
        lora.model_dump(mode="json"),
        recipe.model.precision,
        seed,
    )
    path = folder / f"warm-start-{key}.safetensors"
    if not is_whole(path):
        lesson = Lesson("warm start", pairs, path, seed_of(seed, "warm start"))
        learn(recipe, settings.model_copy(update={"lora": lora}), [lesson], stores)
    return path


def _as_student(sample: Sample) -> Sample:
    """The sample with the student's prompt for every prompt: the student has no guidance."""
    prompt = sample.student_prompt
    return replace(sample, teacher_prompt=prompt, null_prompt=prompt)
