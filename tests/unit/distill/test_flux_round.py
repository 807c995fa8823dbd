"""The second family through the whole of the distillation's code, of which none names it."""

from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from actors.target_pool import TargetActor
from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.families import load_editor
from pipeline.models.lora_formats import content_hash
from pipeline.plan import count_buckets
from pipeline.tensor_store import TensorStore
from pipeline.types import EffectEntry, Manifest, TargetJob
from tests.tiny_flux import write_tiny_flux
from tests.unit.distill.halves import PLAN, SETTINGS, go_on
from tests.unit.models.parity import Ours, write_pictures, write_random_lora

MODULES = ("attn.to_q", "ff.net.2", "proj_mlp", "proj_out")


def test_rounds_run_and_move_the_student(tmp_path: Path) -> None:
    model, store = write_tiny_flux(tmp_path / "model"), tmp_path / "store"
    lora = write_random_lora(tmp_path / "effect.safetensors", model, MODULES, 0.2)
    ours, adapter = Ours(model, lora, store), content_hash(lora)
    pictures = list(write_pictures(tmp_path).values())
    general = tuple(ours.encode([path], "make it brighter")[0] for path in pictures)
    samples = tuple(
        replace(ours.encode([path])[0], target=f"target{i}") for i, path in enumerate(pictures)
    )
    jobs = [TargetJob(str(s.target), str(lora), adapter, s, 3) for s in samples]
    targets = TargetActor(
        str(model), "cpu", "float32", 1, 4, [str(store)], str(store), 2, 1.0, False
    )
    rows = [job.row() for job in jobs]
    targets({name: [row[name] for row in rows] for name in TargetJob.COLUMNS})

    entry = EffectEntry("snow", str(lora), adapter, 1.0, samples)
    manifest, stored = Manifest((entry,), general), TensorStore([store])
    plan = replace(
        PLAN,
        batch=2,
        fake_updates=1,
        ta_fm_batch=2,
        effect_weights=(1.0,),
        samples=(len(samples),),
        general=len(general),
        buckets=count_buckets(manifest),
    )
    assert len(plan.buckets) == 3
    editors = [load_editor(model, ["transformer"]) for _ in range(2)]
    adapters = [Adapters(editor.transformer) for editor in editors]
    for each, names in zip(adapters, ((STUDENT,), (STUDENT, FAKE)), strict=True):
        for seed, name in enumerate(names):
            each.add(name, 2, 2.0, MODULES, seed)
    worker = RolloutWorker(
        editors[0], adapters[0], TeacherCache(adapters[0], 2), stored, manifest, plan, 2.0
    )
    trainer = StudentTrainer(
        editors[1], adapters[1], stored, manifest, plan, SETTINGS, lambda gradients: None
    )
    # "proj_out" is a layer of the single blocks, and not the transformer's last one.
    layers = {key.rsplit(".", 1)[0] for key in trainer.policy()}
    assert "single_transformer_blocks.0.proj_out" in layers
    assert "proj_out" not in layers
    before = trainer.policy()
    metrics = go_on(worker, trainer, range(4), deque([before], maxlen=1))
    assert all(np.isfinite(list(row.values())).all() for row in metrics)
    assert all(row["policy_moved"] < 1e-6 for row in metrics)
    moved = [not torch.equal(value, before[key]) for key, value in trainer.policy().items()]
    assert sum(moved) > len(moved) / 2
