"""Teachers as Ray tasks: one task an effect, as many at once as the cluster has room for."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from torch import Tensor

from actors.lesson_board import speaker
from pipeline.config import LoraSettings
from pipeline.distill.batches import conditions_of
from pipeline.distill.halfway import Halfway
from pipeline.distill.lesson import Lesson, Pair
from pipeline.distill.start import start_weights
from pipeline.distill.teach import (
    START,
    TEACHER,
    Kept,
    Noised,
    Pairs,
    TeachPlan,
    Wanted,
    straight,
    teach,
)
from pipeline.distill.teacher_field import TeacherField
from pipeline.mirror import local_path
from pipeline.models.adapters import BASE, Adapters, TeacherCache
from pipeline.models.families import load_editor
from pipeline.models.lora_formats import LoraModule, lora_at_hand, read_lora, write_lora
from pipeline.models.quantization import Quantize
from pipeline.storage import seal
from pipeline.tensor_store import TensorStore
from pipeline.types import Bucket, Role


@dataclass(frozen=True)
class Guide:
    """How teachers are followed: slots for their adapters, and the guidance of their sampler."""

    adapters_resident: int
    guidance: float
    keep_norm: bool


@ray.remote  # type: ignore[untyped-decorator]
def teach_effect(
    lesson: Lesson,
    model: str,
    device: str,
    dtype: str,
    threads: int,
    lora: LoraSettings,
    plan: TeachPlan,
    stores: tuple[str, ...],
    guide: Guide,
    quantize: Quantize | None = None,
    board: Any = None,
) -> tuple[str, float]:
    """Train one LoRA and write it atomically; returns (effect, final loss).

    board: the ``LessonBoard`` that hears how far it is. Until its LoRA is there, what it has done
    is kept beside it (``Halfway``).
    """
    torch.set_num_threads(threads)
    editor = load_editor(model, ["transformer"], device, getattr(torch, dtype), quantize)
    adapters = Adapters(editor.transformer)
    adapters.add(TEACHER, lora.rank, lora.alpha, lora.modules, seed=plan.seed)
    if lesson.start is not None:
        adapters.add(START, lora.rank, lora.alpha, lora.modules, seed=0, masters=False)
        start = read_lora(lora_at_hand(lesson.start))
        weights = start_weights(start.modules, lora.alpha / lora.rank)
        for name in (TEACHER, START):
            adapters.replace(name, weights)
    store = TensorStore([local_path(s) for s in stores])
    recent: deque[float] = deque(maxlen=50)
    tell = None if board is None else speaker(board, lesson.name)

    def on_step(step: int, loss: float) -> None:
        recent.append(loss)
        if tell is not None:
            tell(step, loss)

    out = local_path(lesson.out)
    halfway = Halfway(out.with_suffix(".halfway"))
    buckets = _by_bucket(lesson.pairs)
    wanted: Wanted = straight
    if lesson.teachers:
        cache = TeacherCache(adapters, guide.adapters_resident)
        field = TeacherField(editor, adapters, cache, store, guide.guidance, guide.keep_norm)
        wanted = _followed(field, lesson, buckets)
    kept = [
        Kept(name, _all_pairs(pairs, lesson.role, store), adapter, batch)
        for name, pairs, adapter, batch in (
            ("rehearse", lesson.known, START, plan.batch),
            ("general", lesson.general, BASE, plan.general),
        )
        if pairs and batch
    ]
    weights = teach(
        editor,
        adapters,
        _all_pairs(lesson.pairs, lesson.role, store),
        plan,
        on_step=on_step,
        kept=kept,
        wanted=wanted,
        halfway=halfway,
    )
    half = torch.float16 if dtype == "float32" else torch.bfloat16
    modules = {
        key.removesuffix(".lora_A"): LoraModule(
            down.to(half), weights[key.replace(".lora_A", ".lora_B")].to(half), lora.alpha
        )
        for key, down in weights.items()
        if key.endswith(".lora_A")
    }
    write_lora(out, modules, {"effect": lesson.name})
    seal(out)
    halfway.remove()
    return lesson.name, sum(recent) / len(recent)


def _by_bucket(pairs: Sequence[Pair]) -> list[list[int]]:
    """The pairs' numbers, those of one token shape together."""
    buckets: dict[Bucket, list[int]] = {}
    for i, (sample, _) in enumerate(pairs):
        buckets.setdefault(sample.shapes, []).append(i)
    return list(buckets.values())


def _all_pairs(pairs: Sequence[Pair], role: Role, store: TensorStore) -> list[Pairs]:
    return [_pairs([pairs[i] for i in rows], role, store) for rows in _by_bucket(pairs)]


def _pairs(pairs: Sequence[Pair], role: Role, store: TensorStore) -> Pairs:
    """Pairs of one bucket, from the store. A student has no guidance, and so no null prompt."""
    samples = [sample for sample, _ in pairs]
    return Pairs(
        conditions_of(samples, role, store),
        conditions_of(samples, "null" if role == "teacher" else role, store),
        torch.stack(store.get_many([target for _, target in pairs])),
    )


def _followed(field: TeacherField, lesson: Lesson, buckets: Sequence[Sequence[int]]) -> Wanted:
    def wanted(batch: Noised) -> Tensor:
        numbers = [buckets[batch.bucket][row] for row in batch.rows]
        samples = [lesson.pairs[i][0] for i in numbers]
        return field.guided_velocity(
            batch.x, batch.t, samples, [lesson.teachers[i] for i in numbers]
        )

    return wanted
