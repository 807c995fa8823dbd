"""Teachers as Ray tasks: one task an effect, as many at once as the cluster has room for."""

from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from pipeline.config import LoraSettings
from pipeline.distill.batches import conditions_of
from pipeline.distill.start import start_weights
from pipeline.distill.teach import START, TEACHER, Pairs, TeachPlan, teach
from pipeline.mirror import local_path
from pipeline.models.adapters import Adapters
from pipeline.models.families import load_editor
from pipeline.models.lora_formats import LoraModule, lora_at_hand, read_lora, write_lora
from pipeline.models.quantization import Quantize
from pipeline.storage import seal
from pipeline.tensor_store import TensorStore
from pipeline.types import Bucket, Sample


@dataclass(frozen=True)
class TeachJob:
    """One effect to teach: its encoded pairs (condition, target key) and where to write.

    start: a LoRA file of the same shape to begin with; known: pairs that it is to keep.
    """

    effect: str
    pairs: tuple[tuple[Sample, str], ...]
    out: str
    start: str | None = None
    known: tuple[tuple[Sample, str], ...] = ()


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
    quantize: Quantize | None = None,
) -> tuple[str, float]:
    """Train one teacher and write its LoRA atomically; returns (effect, final loss)."""
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
    weights = teach(
        editor,
        adapters,
        _by_bucket(job.pairs, store),
        plan,
        on_step=lambda step, loss: recent.append(loss),
        known=_by_bucket(job.known, store),
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


def _by_bucket(pairs: Sequence[tuple[Sample, str]], store: TensorStore) -> list[Pairs]:
    by_bucket: dict[Bucket, list[tuple[Sample, str]]] = {}
    for sample, target in pairs:
        by_bucket.setdefault(sample.shapes, []).append((sample, target))
    return [_pairs(alike, store) for alike in by_bucket.values()]


def _pairs(pairs: Sequence[tuple[Sample, str]], store: TensorStore) -> Pairs:
    """Pairs of one bucket, from the store."""
    samples = [sample for sample, _ in pairs]
    return Pairs(
        conditions_of(samples, "teacher", store),
        conditions_of(samples, "null", store),
        torch.stack(store.get_many([target for _, target in pairs])),
    )
