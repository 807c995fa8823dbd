"""Teachers as Ray tasks: one task an effect, as many at once as the cluster has room for."""

from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch
from torch import Tensor

from pipeline.config import LoraSettings
from pipeline.distill.batches import conditions_of
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
from pipeline.types import Bucket, Role, Sample, Teacher


@dataclass(frozen=True)
class TeachJob:
    """One LoRA to teach: its encoded pairs (condition, target key) and where to write.

    role: whose prompts it learns under; start: a LoRA file of the same shape to begin with; known:
    pairs on which it is held to that file; general: those on which it is held to the base;
    teachers: of each pair the one whose guided velocity it is to have (empty: flow matching on
    the targets).
    """

    effect: str
    pairs: tuple[tuple[Sample, str], ...]
    out: str
    role: Role = "teacher"
    start: str | None = None
    known: tuple[tuple[Sample, str], ...] = ()
    general: tuple[tuple[Sample, str], ...] = ()
    teachers: tuple[Teacher, ...] = ()


@dataclass(frozen=True)
class Guide:
    """How teachers are followed: slots for their adapters, and the guidance of their sampler."""

    adapters_resident: int
    guidance: float
    keep_norm: bool


@ray.remote  # type: ignore[untyped-decorator]
def teach_effect(
    job: TeachJob,
    model: str,
    device: str,
    dtype: str,
    threads: int,
    lora: LoraSettings,
    plan: TeachPlan,
    stores: tuple[str, ...],
    guide: Guide,
    quantize: Quantize | None = None,
) -> tuple[str, float]:
    """Train one LoRA and write it atomically; returns (effect, final loss)."""
    torch.set_num_threads(threads)
    editor = load_editor(model, ["transformer"], device, getattr(torch, dtype), quantize)
    adapters = Adapters(editor.transformer)
    adapters.add(TEACHER, lora.rank, lora.alpha, lora.modules, seed=plan.seed)
    if job.start is not None:
        adapters.add(START, lora.rank, lora.alpha, lora.modules, seed=0, masters=False)
        start = read_lora(lora_at_hand(job.start))
        weights = start_weights(start.modules, lora.alpha / lora.rank)
        for name in (TEACHER, START):
            adapters.replace(name, weights)
    store = TensorStore([local_path(s) for s in stores])
    recent: list[float] = []
    buckets = _by_bucket(job.pairs)
    wanted: Wanted = straight
    if job.teachers:
        cache = TeacherCache(adapters, guide.adapters_resident)
        field = TeacherField(editor, adapters, cache, store, guide.guidance, guide.keep_norm)
        wanted = _followed(field, job, buckets)
    kept = [
        Kept(name, _all_pairs(pairs, job.role, store), adapter, batch)
        for name, pairs, adapter, batch in (
            ("rehearse", job.known, START, plan.batch),
            ("general", job.general, BASE, plan.general),
        )
        if pairs and batch
    ]
    weights = teach(
        editor,
        adapters,
        _all_pairs(job.pairs, job.role, store),
        plan,
        on_step=lambda step, loss: recent.append(loss),
        kept=kept,
        wanted=wanted,
    )
    half = torch.float16 if dtype == "float32" else torch.bfloat16
    modules = {
        key.removesuffix(".lora_A"): LoraModule(
            down.to(half), weights[key.replace(".lora_A", ".lora_B")].to(half), lora.alpha
        )
        for key, down in weights.items()
        if key.endswith(".lora_A")
    }
    out = local_path(job.out)
    write_lora(out, modules, {"effect": job.effect})
    seal(out)
    return job.effect, sum(recent[-50:]) / len(recent[-50:])


def _by_bucket(pairs: Sequence[tuple[Sample, str]]) -> list[list[int]]:
    """The pairs' numbers, those of one token shape together."""
    buckets: dict[Bucket, list[int]] = {}
    for i, (sample, _) in enumerate(pairs):
        buckets.setdefault(sample.shapes, []).append(i)
    return list(buckets.values())


def _all_pairs(pairs: Sequence[tuple[Sample, str]], role: Role, store: TensorStore) -> list[Pairs]:
    return [_pairs([pairs[i] for i in rows], role, store) for rows in _by_bucket(pairs)]


def _pairs(pairs: Sequence[tuple[Sample, str]], role: Role, store: TensorStore) -> Pairs:
    """Pairs of one bucket, from the store. A student has no guidance, and so no null prompt."""
    samples = [sample for sample, _ in pairs]
    return Pairs(
        conditions_of(samples, role, store),
        conditions_of(samples, "null" if role == "teacher" else role, store),
        torch.stack(store.get_many([target for _, target in pairs])),
    )


def _followed(field: TeacherField, job: TeachJob, buckets: Sequence[Sequence[int]]) -> Wanted:
    def wanted(batch: Noised) -> Tensor:
        numbers = [buckets[batch.bucket][row] for row in batch.rows]
        samples = [job.pairs[i][0] for i in numbers]
        return field.guided_velocity(batch.x, batch.t, samples, [job.teachers[i] for i in numbers])

    return wanted
