"""Encode: every prompt and image once, by a Ray Data actor pool, to Parquet.

Prompts and images are fixed, so neither the text encoder nor the autoencoder is ever loaded by
the teacher pool or the student group. What is already in the store under its key is not done
again.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline.bank import Bank, Effect
from pipeline.config import ModelSettings, Recipe
from pipeline.evaluation.effectbench import TestSource
from pipeline.images import open_image
from pipeline.models.fingerprint import fingerprint
from pipeline.models.qwen_image_edit import image_sizes, token_grid
from pipeline.prompting import EffectPrompts
from pipeline.storage import content_key, sha256_file
from pipeline.types import Sample

NEGATIVE_PROMPT = ""


@dataclass(frozen=True)
class EncodeJob:
    """One tensor to make: an image's latent tokens, or a prompt's states about an image."""

    key: str
    kind: str
    path: str
    prompt: str


class Encodings:
    """Names encodings by content and remembers the jobs that make them."""

    def __init__(self, model: ModelSettings) -> None:
        self.jobs: dict[str, EncodeJob] = {}
        self._vae = fingerprint(model.path, "vae")
        self._text = fingerprint(model.path, "text_encoder", "tokenizer", "processor")
        self._sizes = image_sizes(Path(model.path))
        self._dtype = model.dtype
        self._model = Path(model.path)

    def image(self, path: Path) -> str:
        """The key of an image's latent tokens."""
        side = self._sizes.side
        return self._job("image", path, "", [self._vae, self._dtype, sha(path), side])

    def prompt(self, prompt: str, path: Path) -> str:
        """The key of a prompt's states about an image."""
        side = self._sizes.condition_side
        return self._job("prompt", path, prompt, [self._text, self._dtype, prompt, sha(path), side])

    def grid(self, path: Path) -> tuple[int, int]:
        """(rows, columns) of an image's latent tokens."""
        return token_grid(self._model, *open_image(path).size)

    def _job(self, kind: str, path: Path, prompt: str, content: list[object]) -> str:
        key = content_key(kind, *content)
        self.jobs.setdefault(key, EncodeJob(key, kind, str(path), prompt))
        return key


@cache
def sha(path: Path) -> str:
    """A file's sha256, read once a process."""
    return sha256_file(path)


@dataclass(frozen=True)
class EffectSources:
    """An effect's encoded pairs (to teach) and sources (to distil), by keys."""

    effect: Effect
    pairs: tuple[tuple[Sample, str], ...]
    samples: tuple[Sample, ...]


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
        _effect(encodings, bank, effect, prompt, recipe.targets.sources, pairs)
        for effect, prompt in zip(bank.effects, prompts, strict=True)
    )
    general = tuple(_sample(encodings, row.image, row.prompt, row.prompt) for row in bank.general)
    held_out = bank.test[: recipe.evaluate.photographs]
    test = tuple(_test_source(encodings, path, prompts) for path in held_out)
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
    for _ in through_pool([vars(j) for j in todo], EncoderActor, arguments, pool, 64, "encode"):
        pass


def _sample(encodings: Encodings, source: Path, student: str, teacher: str) -> Sample:
    rows, columns = encodings.grid(source)
    return Sample(
        source=encodings.image(source),
        student_prompt=encodings.prompt(student, source),
        teacher_prompt=encodings.prompt(teacher, source),
        null_prompt=encodings.prompt(NEGATIVE_PROMPT, source),
        target=None,
        rows=rows,
        columns=columns,
    )


def _effect(
    encodings: Encodings,
    bank: Bank,
    effect: Effect,
    prompts: EffectPrompts,
    sources: int,
    with_pairs: bool,
) -> EffectSources:
    """An effect's own pictures come first, then the bank's unlabelled photographs."""
    pairs = bank.pairs_of(effect.name)
    paths = [pair.source for pair in pairs] + list(bank.photographs)
    samples = tuple(
        _sample(encodings, path, prompts.student, prompts.teacher) for path in paths[:sources]
    )
    taught: tuple[tuple[Sample, str], ...] = ()
    if effect.adapter is None or with_pairs:
        taught = tuple(
            (
                _sample(encodings, pair.source, prompts.teacher, prompts.teacher),
                encodings.image(pair.target),
            )
            for pair in pairs
        )
    return EffectSources(effect, taught, samples)


def _test_source(encodings: Encodings, path: Path, prompts: Sequence[EffectPrompts]) -> TestSource:
    rows, columns = encodings.grid(path)
    return TestSource(
        path=str(path),
        photograph=path.stem,
        source=encodings.image(path),
        null_prompt=encodings.prompt(NEGATIVE_PROMPT, path),
        teacher_prompts={p.effect: encodings.prompt(p.teacher, path) for p in prompts},
        student_prompts={p.effect: encodings.prompt(p.student, path) for p in prompts},
        rows=rows,
        columns=columns,
    )
