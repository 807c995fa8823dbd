"""Encode: every prompt and image once, by a Ray Data actor pool, to Parquet.

Prompts and images are fixed, so neither the text encoder nor the autoencoder is ever loaded by
the teacher pool or the student group. What is already in the store under its key is not done
again.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.bank import Bank, Effect
from pipeline.config import ModelSettings, Recipe
from pipeline.evaluation.effectbench import TestSource
from pipeline.images import open_image
from pipeline.models.families import family_of, geometry_of
from pipeline.models.fingerprint import fingerprint
from pipeline.models.geometry import Size
from pipeline.problems import InputError, Problem
from pipeline.prompting import EffectPrompts
from pipeline.storage import content_key, sha256_file
from pipeline.types import Sample

NEGATIVE_PROMPT = ""


@dataclass(frozen=True)
class EncodeJob:
    """One tensor to make: a picture's latent tokens, or a prompt's states about its pictures.

    paths: the one picture, or those that the prompt is about; width, height: the size at which
    a picture is encoded, 0 for a prompt.
    """

    key: str
    kind: str
    paths: tuple[str, ...]
    prompt: str
    width: int
    height: int

    def row(self) -> dict[str, object]:
        """For Ray Data, which is happiest with flat columns: the paths as JSON."""
        return {**vars(self), "paths": json.dumps(self.paths)}


class Encodings:
    """Names encodings by content and remembers the jobs that make them."""

    def __init__(self, model: ModelSettings) -> None:
        self.jobs: dict[str, EncodeJob] = {}
        self.family = family_of(model.path)
        self.geometry = geometry_of(model.path, self.family)
        self._vae = fingerprint(model.path, "vae")
        self._text = fingerprint(model.path, *self.family.text)
        self._dtype = model.dtype

    def image(self, path: Path, size: Size) -> str:
        """The key of a picture's latent tokens at a size."""
        key = content_key("image", self._vae, self._dtype, sha(path), size)
        return self._job(EncodeJob(key, "image", (str(path),), "", *size))

    def prompt(self, prompt: str, paths: Sequence[Path]) -> str:
        """The key of a prompt's states about pictures, if this family's encoder looks at them."""
        content: list[object] = []
        if self.family.prompts_see_images:
            content = [[sha(path) for path in paths], self.geometry.sizes.condition_side]
        key = content_key("prompt", self._text, self._dtype, prompt, content)
        seen = tuple(map(str, paths)) if self.family.prompts_see_images else ()
        return self._job(EncodeJob(key, "prompt", seen, prompt, 0, 0))

    def sample(
        self, sources: Sequence[Path], student: str, teacher: str, edited: Path | None = None
    ) -> Sample:
        """The keys of an edit of pictures, at the aspect ratio of the last one or of ``edited``."""
        at = [self.geometry.source(size_of(path)) for path in sources]
        target = self.geometry.target(size_of(edited or sources[-1]))
        return Sample(
            sources=tuple(self.image(p, size) for p, size in zip(sources, at, strict=True)),
            student_prompt=self.prompt(student, sources),
            teacher_prompt=self.prompt(teacher, sources),
            null_prompt=self.prompt(NEGATIVE_PROMPT, sources),
            target=None,
            shapes=tuple(self.geometry.tokens(size) for size in (target, *at)),
        )

    def edited(self, path: Path) -> str:
        """The key of an edited picture's latent tokens: what a teacher learns from."""
        return self.image(path, self.geometry.target(size_of(path)))

    def _job(self, job: EncodeJob) -> str:
        self.jobs.setdefault(job.key, job)
        return job.key


@cache
def sha(path: Path) -> str:
    """A file's sha256, read once a process."""
    return sha256_file(path)


@cache
def size_of(path: Path) -> Size:
    """A picture's (width, height), upright, read once a process."""
    return open_image(path).size


@dataclass(frozen=True)
class EffectSources:
    """An effect's encoded pairs (to teach) and sources (to distil, to look at), by keys."""

    effect: Effect
    pairs: tuple[tuple[Sample, str], ...]
    samples: tuple[Sample, ...]
    held_back: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Collection:
    """The bank in keys: what every later stage works from."""

    effects: tuple[EffectSources, ...]
    general: tuple[Sample, ...]
    test: tuple[TestSource, ...]


def collect(
    recipe: Recipe, bank: Bank, prompts: Sequence[EffectPrompts], pairs: bool = False
) -> tuple[Collection, dict[str, EncodeJob]]:
    """All keys that a run needs, and the jobs that make them; reads files, computes nothing.

    ``pairs``: also those pairs that teach nobody, because their effect brings its adapter.
    """
    encodings = Encodings(recipe.model)
    effects = tuple(
        _effect(encodings, bank, effect, prompt, recipe, pairs)
        for effect, prompt in zip(bank.effects, prompts, strict=True)
    )
    general = tuple(encodings.sample(row.images, row.prompt, row.prompt) for row in bank.general)
    held_out = bank.test[: recipe.evaluate.photographs]
    named = zip(held_out, photograph_names(held_out), strict=True)
    test = tuple(_test_source(encodings, path, name, prompts) for path, name in named)
    return Collection(effects, general, test), encodings.jobs


def missing(jobs: Iterable[EncodeJob], stored: set[str]) -> list[EncodeJob]:
    """The jobs whose tensors are not stored, images first."""
    return sorted((j for j in jobs if j.key not in stored), key=lambda j: (j.kind, j.key))


def encode(recipe: Recipe, todo: Sequence[EncodeJob], folder: Path) -> None:
    """Make the missing encodings."""
    from actors.encoder_pool import EncoderActor
    from actors.pool import through_pool
    from actors.session import device_of

    pool = recipe.cluster.encoder_pool
    arguments = {
        "model": recipe.model.path,
        "device": device_of(recipe.model, pool.num_gpus),
        "dtype": recipe.model.dtype,
        "threads": pool.threads,
        "folder": str(folder),
    }
    for _ in through_pool([job.row() for job in todo], EncoderActor, arguments, pool, 64, "encode"):
        pass


def _effect(
    encodings: Encodings,
    bank: Bank,
    effect: Effect,
    prompts: EffectPrompts,
    recipe: Recipe,
    with_pairs: bool,
) -> EffectSources:
    """An effect's own pictures come first, then the bank's unlabelled photographs.

    Photographs are single pictures: an effect of several gets none.
    """
    pairs = bank.pairs_of(effect.name)
    pictures = [pair.sources for pair in pairs]
    if all(len(each) == 1 for each in pictures):
        pictures += [(photograph,) for photograph in bank.photographs]
    sources, watch = recipe.targets.sources, recipe.watch
    samples, held_back = (
        tuple(encodings.sample(each, prompts.student, prompts.teacher) for each in some)
        for some in (
            pictures[:sources],
            pictures[sources : sources + watch.held_back] if watch.every else [],
        )
    )
    if watch.every and not held_back:
        raise InputError(
            [
                Problem(
                    str(bank.folder / "bank.yaml"),
                    f"effects.{effect.name}",
                    len(pictures),
                    f"no pictures beyond targets.sources ({sources}) for `watch` to hold back",
                    "give the bank more photographs, lower targets.sources, or set watch.every: 0",
                )
            ]
        )
    taught: tuple[tuple[Sample, str], ...] = ()
    if effect.adapter is None or with_pairs:
        taught = tuple(
            (
                encodings.sample(pair.sources, prompts.teacher, prompts.teacher, pair.target),
                encodings.edited(pair.target),
            )
            for pair in pairs
        )
    return EffectSources(effect, taught, samples, held_back)


def photograph_names(paths: Sequence[Path]) -> list[str]:
    """Held-out pictures' names, no two alike: their stems.

    Where one folder has ``1.png`` and ``1.jpg`` the ending is part of the name; before a name that
    several folders have come as many folders as tell them apart. If all that fails they are
    numbered.
    """
    siblings = Counter(path.with_suffix("") for path in paths)
    stems = [
        path.stem if siblings[path.with_suffix("")] == 1 else f"{path.stem}_{path.suffix[1:]}"
        for path in paths
    ]
    above = [path.parent.relative_to(path.anchor).parts for path in paths]
    names = stems
    for folders in range(1, max(map(len, above), default=0) + 1):
        longer = ["_".join([*a[-folders:], s]) for a, s in zip(above, stems, strict=True)]
        names = _where_shared(names, longer)
    alike = len(set(names)) < len(names)
    return [f"{i}_{name}" for i, name in enumerate(names)] if alike else names


def _where_shared(names: Sequence[str], longer: Sequence[str]) -> list[str]:
    count = Counter(names)
    return [name if count[name] == 1 else other for name, other in zip(names, longer, strict=True)]


def _test_source(
    encodings: Encodings, path: Path, name: str, prompts: Sequence[EffectPrompts]
) -> TestSource:
    bare = encodings.sample((path,), NEGATIVE_PROMPT, NEGATIVE_PROMPT)
    return TestSource(
        path=str(path),
        photograph=name,
        source=bare.sources[0],
        null_prompt=bare.null_prompt,
        teacher_prompts={p.effect: encodings.prompt(p.teacher, (path,)) for p in prompts},
        student_prompts={p.effect: encodings.prompt(p.student, (path,)) for p in prompts},
        shapes=bare.shapes,
    )
