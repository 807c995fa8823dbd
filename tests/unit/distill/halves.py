"""Both halves of the distillation over one tiny collection, in one process."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pipeline.distill.rates import RateSettings
from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.distill.update_settings import UpdateSettings
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.editor import Conditions
from pipeline.plan import AnchorSlot, PlanSettings, Slot, count_buckets
from pipeline.tensor_store import TensorStore
from pipeline.types import Bucket, Sample
from tests.unit.tiny import MODULES, SHAPES, tiny_collection, tiny_editor

PLAN = PlanSettings(
    seed=3,
    batch=3,
    p_switch=0.5,
    fake_updates=5,
    student_steps=8,
    shift=3.0,
    tau_max=0.75,
    tau_min=0.5,
    ta_fm_batch=0,
    effect_weights=(1.0, 2.0, 3.0),
    samples=(4, 4, 4),
    general=3,
)
RATE = RateSettings(2e-3, 2, "cosine")
SETTINGS = UpdateSettings(
    rounds=8,
    student_rate=RATE,
    fake_rate=RATE,
    betas=(0.9, 0.99),
    grad_clip=1.0,
    ema=0.9,
    weight_bs=1.0,
    weight_ts=1.0,
    weight_ta=1.0,
)
GUIDANCE = 3.0
HASH = "0123456789ab"


class Collection:
    """A tiny collection on disk, and the two halves over it."""

    def __init__(self, folder: Path, buckets: Sequence[Bucket] = (SHAPES,)) -> None:
        store, self.manifest = tiny_collection(folder, tiny_editor(), buckets)
        self.folders = [store]
        self.store = TensorStore(self.folders)

    def plan(self, plan: PlanSettings) -> PlanSettings:
        """A plan over this collection's buckets."""
        return replace(plan, buckets=count_buckets(self.manifest))

    def sample(self, slot: Slot | AnchorSlot) -> Sample:
        return self.manifest.rows[slot.effect, slot.bucket][slot.sample]

    def alone(self, sample: Sample, prompt: str) -> Conditions:
        """One sample's conditions, written out."""
        sources = torch.cat([self.store.get(key) for key in sample.sources])
        return Conditions(self.store.get(prompt)[None], None, sources[None], list(sample.shapes))

    def worker(self, plan: PlanSettings = PLAN) -> RolloutWorker:
        editor = tiny_editor()
        adapters = Adapters(editor.transformer)
        adapters.add(STUDENT, 4, 4.0, MODULES, seed=99)
        return RolloutWorker(
            editor, adapters, TeacherCache(adapters, 3), self.store, self.manifest, plan, GUIDANCE
        )

    def trainer(
        self,
        plan: PlanSettings = PLAN,
        settings: UpdateSettings = SETTINGS,
        all_reduce: Callable[[Sequence[Tensor]], None] = lambda gradients: None,
    ) -> StudentTrainer:
        editor = tiny_editor()
        adapters = Adapters(editor.transformer)
        for seed, name in enumerate((STUDENT, FAKE)):
            adapters.add(name, 4, 4.0, MODULES, seed)
        return StudentTrainer(
            editor, adapters, self.store, self.manifest, plan, settings, all_reduce
        )


def go_on(
    worker: RolloutWorker,
    trainer: StudentTrainer,
    rounds: range,
    policies: deque[dict[str, Tensor]],
) -> list[dict[str, float]]:
    """The reference loop: ``policies`` ends with the newest, and is as long as the lag allows."""
    metrics = []
    for r in rounds:
        lag = (policies.maxlen or 1) - 1
        version = max(0, r - lag)
        worker.load_policy(policies[version - r - 1])
        metrics.append(trainer.update(worker.roll(r, 0, version), r, 0))
        policies.append(trainer.policy())
    return metrics
