"""Rounds on a GPU are those on the CPU, to fp32's rounding."""

from collections import deque
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.models.adapters import Adapters, TeacherCache
from tests.unit.distill.halves import GUIDANCE, PLAN, SETTINGS, Collection, go_on
from tests.unit.tiny import MODULES, tiny_editor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
CLOSE, ROUNDS = 1e-3, 3


def halves(collection: Collection, device: str) -> tuple[RolloutWorker, StudentTrainer]:
    """Both halves on one base on a device."""
    editor = tiny_editor()
    editor.device = torch.device(device)
    editor.transformer.to(device)
    adapters = Adapters(editor.transformer)
    for seed, name in enumerate((STUDENT, FAKE)):
        adapters.add(name, 4, 4.0, MODULES, seed)
    store, manifest = collection.store, collection.manifest
    teachers = TeacherCache(adapters, 3)
    worker = RolloutWorker(editor, adapters, teachers, store, manifest, PLAN, GUIDANCE)
    trainer = StudentTrainer(editor, adapters, store, manifest, PLAN, SETTINGS, lambda _: None)
    return worker, trainer


def test_rounds_agree(tmp_path: Path) -> None:
    torch.backends.cuda.matmul.allow_tf32 = False
    collection = Collection(tmp_path)
    weights: dict[str, dict[str, Tensor]] = {}
    rollouts, metrics = {}, {}
    for device in ("cpu", "cuda"):
        worker, trainer = halves(collection, device)
        rollouts[device] = worker.roll(0, 0, 0)
        metrics[device] = go_on(worker, trainer, range(ROUNDS), deque([trainer.policy()], maxlen=1))
        weights[device] = trainer.policy()
    for name in ("x_g", "teacher_x0", "fake_x0", "ts_x0", "ts_teacher_x0"):
        cpu, gpu = (torch.as_tensor(getattr(rollouts[d], name)) for d in ("cpu", "cuda"))
        assert (cpu - gpu).abs().max() < CLOSE, name
    for key, value in weights["cpu"].items():
        assert (weights["cuda"][key] - value).abs().max() < CLOSE, key
    moved = max(v.abs().max() for k, v in weights["cpu"].items() if k.endswith("lora_B"))
    assert moved > CLOSE
    for name, value in metrics["cpu"][-1].items():
        assert metrics["cuda"][-1][name] == pytest.approx(value, rel=1e-2, abs=CLOSE), name


def test_the_bench_runs_on_the_gpu(tmp_path: Path) -> None:
    from pipeline.distill.bench.__main__ import main

    assert main(["--size", "mini", "--device", "cuda", "--out", str(tmp_path / "b.json")]) == 0
