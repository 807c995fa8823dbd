"""Contenders: the adapters and methods that a student is held against, made from the bank.

A contender is what a user would do instead: a file of weights for each effect (often the same one
for all) and a way to sample. Files are cached under the content of what they are made of.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

from pipeline.bank import Bank
from pipeline.config import Recipe
from pipeline.distill.lesson import Lesson
from pipeline.evaluation.effectbench import Method, adapter_file
from pipeline.models.fingerprint import fingerprint
from pipeline.models.lora_formats import content_hash, read_lora, write_lora
from pipeline.models.merging import Merge, Modules, merge, stack
from pipeline.problems import InputError, Problem
from pipeline.stages.encode import EffectSources
from pipeline.stages.general_rows import general_rows
from pipeline.stages.teach import learn, seed_of
from pipeline.storage import content_key, is_whole, seal
from pipeline.types import Manifest

Adapters = Mapping[str, tuple[str, str]]

JOINT_GENERAL = "bench.joint.general"


def everyone(names: Sequence[str], lora: Path) -> Adapters:
    """One LoRA for all effects."""
    return dict.fromkeys(names, adapter_file(lora))


def many_steps(recipe: Recipe, name: str, adapters: Adapters, draws: int) -> Method:
    """Sampled as the teachers are: many steps, guidance, the teachers' prompts."""
    targets, shift = recipe.targets, recipe.student.shift
    steps, guidance, keep = targets.steps, targets.guidance, targets.keep_norm
    return Method(name, "teacher", adapters, "euler", steps, guidance, shift, draws, keep)


def few_steps(recipe: Recipe, name: str, adapters: Adapters, draws: int) -> Method:
    """Sampled as the student is, but under the teachers' prompts: an accelerated teacher."""
    student = recipe.student
    return Method(name, "teacher", adapters, "student", student.steps, 1.0, student.shift, draws)


def untrained_contenders(recipe: Recipe, manifest: Manifest, folder: Path) -> list[Method]:
    """``teacher-few`` and the bank merged by peft's methods; nothing in them is trained."""
    draws = recipe.evaluate.draws
    teachers = {e.name: (e.adapter, e.adapter_hash) for e in manifest.effects}
    # Fewer Euler steps of the multi-step sampler: what one gets by turning the steps down.
    few = many_steps(recipe, "teacher-few", teachers, draws)
    methods = [replace(few, steps=recipe.student.steps, guidance=1.0)]
    for kind in get_args(Merge):
        merged = _merged(recipe, manifest, kind, folder)
        adapters = everyone(list(teachers), merged)
        methods.append(many_steps(recipe, f"merge-{kind}", adapters, draws))
    return methods


def cascade(recipe: Recipe, manifest: Manifest, acceleration: Path, folder: Path) -> Method:
    """Each teacher with the acceleration LoRA on top of it, both active at once."""
    adapters = {
        e.name: adapter_file(stacked([Path(e.adapter), acceleration], folder))
        for e in manifest.effects
    }
    method = few_steps(recipe, "cascade", adapters, recipe.evaluate.draws)
    # Stacked for the sampler alone: the acceleration is delivered once, in the same precision.
    once = stacked([acceleration], folder)
    files = [*(e.adapter for e in manifest.effects), str(once)]
    return replace(method, ships=tuple(files))


def stacked(loras: Sequence[Path], folder: Path) -> Path:
    """Several LoRA files as one file that adds what all of them add."""
    path = folder / f"stacked-{content_key('stacked', *map(content_hash, loras))}.safetensors"
    if not is_whole(path):
        write_lora(path, _halved(stack([read_lora(lora).modules for lora in loras])), {})
        seal(path)
    return path


def joint_loras(
    recipe: Recipe,
    effects: Sequence[EffectSources],
    manifest: Manifest,
    folder: Path,
    seeds: Sequence[int],
    stores: list[Path],
    ray: Callable[[], None],
) -> list[Path]:
    """One LoRA of the student's shape a seed, by flow matching on the pairs of all effects.

    A lesson takes one core, so all seeds' are given at once.
    """
    pairs = tuple(pair for e in effects for pair in e.pairs)
    settings, lora = recipe.bench.joint, recipe.student.lora
    general = general_rows(manifest, len(pairs), JOINT_GENERAL) if settings.general else ()
    content = [
        fingerprint(recipe.model.path, "transformer"),
        [[list(s.sources), s.teacher_prompt, s.null_prompt, target] for s, target in pairs],
        settings.content(),
        lora.model_dump(mode="json"),
        recipe.model.precision,
        *([[[list(s.sources), s.teacher_prompt, y] for s, y in general]] if general else []),
    ]
    paths = [folder / f"joint-{content_key('joint', *content, seed)}.safetensors" for seed in seeds]
    lessons = [
        Lesson(f"joint, seed {seed}", pairs, path, seed_of(seed, "joint"), general=general)
        for seed, path in zip(seeds, paths, strict=True)
        if not is_whole(path)
    ]
    if lessons:
        ray()
        learn(recipe, settings.model_copy(update={"lora": lora}), lessons, stores)
    return paths


def wants_general(recipe: Recipe, bank: Bank) -> None:
    """What the joint LoRA wants of a bank.

    Raises:
        InputError: ``bench.joint.general`` without general rows.
    """
    if recipe.bench.joint.general and not bank.general:
        what = f"no rows for the general stream, of which {JOINT_GENERAL} shows some each step"
        remedy = f"add general rows, or set {JOINT_GENERAL} to 0"
        raise InputError([Problem(str(bank.folder / "bank.yaml"), "general", None, what, remedy)])


def _merged(recipe: Recipe, manifest: Manifest, kind: Merge, folder: Path) -> Path:
    hashes = [e.adapter_hash for e in manifest.effects]
    density = recipe.bench.density
    key = content_key("merge", kind, density, recipe.seed, *hashes)
    path = folder / f"merge-{kind}-{key}.safetensors"
    if not is_whole(path):
        loras = [read_lora(e.adapter).modules for e in manifest.effects]
        write_lora(path, _halved(merge(loras, kind, density, recipe.seed)), {})
        seal(path)
    return path


def _halved(modules: Modules) -> Modules:
    """Half precision on disk, as the teachers are."""
    return {n: replace(m, down=m.down.half(), up=m.up.half()) for n, m in modules.items()}
