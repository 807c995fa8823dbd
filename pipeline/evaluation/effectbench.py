"""What an evaluation edits and judges: plain lists under content keys, made before any work.

Every method edits every held-out photograph with every effect, from the same noise. A row is one
picture to make, a job is one photograph to judge.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, TypedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.config import Recipe
from pipeline.evaluation.report import ImageScore
from pipeline.images import open_image
from pipeline.miniature.pictures import to_array
from pipeline.models.lora_formats import content_hash
from pipeline.storage import content_key
from pipeline.types import Bucket, Manifest

Array = NDArray[np.float32]
Sampler = Literal["euler", "student"]
Truth = Literal["miniature", "pairs"]

# Raise it when the scores of the same pictures change.
SCORING = 1


@dataclass(frozen=True)
class TestSource:
    """A held-out photograph: its file, and the keys of its encodings.

    ``photograph`` is the file's stem; ``teacher_prompts`` and ``student_prompts`` map effects'
    names to keys; ``shapes``: the edit's token shape, then the photograph's.
    """

    __test__: ClassVar[bool] = False  # for pytest: not a test class

    path: str
    photograph: str
    source: str
    null_prompt: str
    teacher_prompts: dict[str, str]
    student_prompts: dict[str, str]
    shapes: Bucket


@dataclass(frozen=True)
class Method:
    """A way to edit: which adapter and prompt for each effect, and which sampler.

    adapters: effect to (file, content hash), an effect without one runs on the bare base;
    shift: of the student's schedule (the multi-step sampler has the model's own);
    guidance 1 is no guidance: one forward a step; keep_norm: see ``guided_velocity``; ships: the
    files that one would deliver, where these are not the adapters (no picture depends on it).
    """

    name: str
    prompts: Literal["teacher", "student"]
    adapters: Mapping[str, tuple[str, str]]
    sampler: Sampler
    steps: int
    guidance: float
    shift: float
    draws: int
    keep_norm: bool = False
    ships: tuple[str, ...] = ()

    @property
    def shipped_bytes(self) -> float:
        """The size of what one would deliver, each file once."""
        files = self.ships or [path for path, _ in self.adapters.values()]
        return float(sum(Path(file).stat().st_size for file in set(files)))


class EvalRow(TypedDict):
    """One picture to make, as it travels through Ray Data: plain values only.

    key: where the picture will be stored, ``[H, W, 3]`` in [0, 1]; source, prompt, null_prompt:
    tensor-store keys; adapter, adapter_hash: ``""`` for the bare base; seed and draw: with effect
    and photograph they decide the noise, whatever the method; shapes: a bucket as JSON.
    """

    key: str
    method: str
    effect: str
    photograph: str
    draw: int
    seed: int
    source: str
    prompt: str
    null_prompt: str
    adapter: str
    adapter_hash: str
    sampler: Sampler
    steps: int
    guidance: float
    keep_norm: bool
    shift: float
    shapes: str


@dataclass(frozen=True)
class Item:
    """One output to judge and the key of its picture."""

    method: str
    effect: str
    draw: int
    key: str


@dataclass(frozen=True)
class JudgeJob:
    """One photograph with all its outputs; ``key`` names the file of its scores."""

    key: str
    photograph: str
    path: str
    items: tuple[Item, ...]

    def row(self) -> dict[str, str]:
        """For Ray Data, which is happiest with flat columns: the items as JSON."""
        items = json.dumps([asdict(item) for item in self.items])
        return {"key": self.key, "photograph": self.photograph, "path": self.path, "items": items}

    @classmethod
    def from_row(cls, row: Mapping[str, Any]) -> "JudgeJob":
        items = tuple(Item(**item) for item in json.loads(row["items"]))
        return cls(str(row["key"]), str(row["photograph"]), str(row["path"]), items)


def adapter_file(path: Path) -> tuple[str, str]:
    """A LoRA as methods name it: (file, content hash)."""
    return str(path.resolve()), content_hash(path)


def standard_methods(recipe: Recipe, manifest: Manifest, student: tuple[str, str]) -> list[Method]:
    """Base, teacher and student; ``student`` is its adapter's (file, content hash).

    The base has the teachers' prompts and sampler without their adapters.
    """
    draws, targets = recipe.evaluate.draws, recipe.targets
    # Without a known truth the teachers' other draws are the reference: there must be others.
    teacher_draws = max(2, draws) if recipe.evaluate.truth == "pairs" else draws
    shift = recipe.student.shift
    teachers = {e.name: (e.adapter, e.adapter_hash) for e in manifest.effects}
    one = {e.name: student for e in manifest.effects}
    steps, guidance, keep = targets.steps, targets.guidance, targets.keep_norm
    return [
        Method("base", "teacher", {}, "euler", steps, guidance, shift, draws, keep),
        Method(
            "teacher", "teacher", teachers, "euler", steps, guidance, shift, teacher_draws, keep
        ),
        Method("student", "student", one, "student", recipe.student.steps, 1.0, shift, draws),
    ]


def eval_rows(
    methods: Sequence[Method],
    effects: Sequence[str],
    test: Sequence[TestSource],
    seed: int,
    model: str,
) -> list[EvalRow]:
    """All pictures to make, ordered so that neighbours share a method, then an effect.

    ``model`` identifies the base's weights and precision. Raises ValueError when two photographs
    or two methods have the same name.
    """
    for what, names in (
        ("photographs", [t.photograph for t in test]),
        ("methods", [m.name for m in methods]),
    ):
        if len(set(names)) < len(names):
            raise ValueError(f"{what} need names of their own, not {names}")
    return [
        _row(method, effect, source, draw, seed, model)
        for method in methods
        for effect in effects
        for source in test
        for draw in range(method.draws)
    ]


def _row(
    method: Method, effect: str, source: TestSource, draw: int, seed: int, model: str
) -> EvalRow:
    prompts = source.teacher_prompts if method.prompts == "teacher" else source.student_prompts
    adapter, adapter_hash = method.adapters.get(effect, ("", ""))
    settings: list[object] = [method.sampler, method.steps, method.guidance]
    if method.sampler == "student":
        settings.append(method.shift)
    if method.keep_norm:
        settings.append("keep_norm")
    encodings = [source.source, prompts[effect]]
    if method.guidance != 1:
        encodings.append(source.null_prompt)
    which = [seed, effect, source.photograph, draw]
    return EvalRow(
        key=content_key("picture", model, method.name, adapter_hash, encodings, settings, which),
        method=method.name,
        effect=effect,
        photograph=source.photograph,
        draw=draw,
        seed=seed,
        source=source.source,
        prompt=prompts[effect],
        null_prompt=source.null_prompt,
        adapter=adapter and str(Path(adapter).resolve()),
        adapter_hash=adapter_hash,
        sampler=method.sampler,
        steps=method.steps,
        guidance=method.guidance,
        shift=method.shift,
        keep_norm=method.keep_norm,
        shapes=json.dumps(source.shapes),
    )


def judge_jobs(
    rows: Sequence[EvalRow],
    photographs: Mapping[str, tuple[str, str]],
    families: Mapping[str, str],
    truth: Truth,
    autoencoder: str,
) -> list[JudgeJob]:
    """A job a photograph; ``photographs`` maps each one's name to (file, sha256 of the file).

    ``autoencoder`` identifies its weights: truths go through it before outputs are compared.
    """
    jobs = []
    for photograph, (path, sha) in photographs.items():
        items = tuple(
            Item(row["method"], row["effect"], row["draw"], row["key"])
            for row in rows
            if row["photograph"] == photograph
        )
        asked = [asdict(item) for item in items]
        content = [photograph, sha, truth, autoencoder, dict(families), asked]
        key = content_key("judge", SCORING, content)
        jobs.append(JudgeJob(key, photograph, path, items))
    return jobs


def cost_key(key: str) -> str:
    """Where a picture's cost is stored: ``[milliseconds, forwards]``."""
    return f"{key}.cost"


def open_source(path: Path, height: int, width: int) -> Array:
    """A photograph at the size at which it was edited, ``[H, W, 3]`` in [0, 1]."""
    image = open_image(path)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    return to_array(image)


def whole_photograph(name: str) -> str:
    """The photograph of a crop of the miniature's: of ``coffee_001`` ``coffee``."""
    return re.sub(r"_\d{3}$", "", name)


def by_whole_photograph(scores: Iterable[ImageScore]) -> list[ImageScore]:
    """Name the crops ``coffee_001``, ``coffee_006`` of one photograph ``coffee``.

    They are not independent, so the bootstrap has to draw them together; draws are numbered
    through, which keeps the scores apart.
    """
    seen: dict[tuple[str, str, str], int] = {}
    named = []
    for score in scores:
        photograph = whole_photograph(score.photograph)
        place = (score.method, score.effect, photograph)
        named.append(replace(score, photograph=photograph, draw=seen.get(place, 0)))
        seen[place] = seen.get(place, 0) + 1
    return named
