"""Fewer adapter slots than a round has teachers: more batches, the same scores."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from actors.target_pool import TargetActor
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.editor import Conditions, Editor
from pipeline.tensor_store import TensorStore
from pipeline.types import TargetJob
from tests.unit.distill.halves import PLAN, Collection
from tests.unit.tiny import tiny_editor


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_round_of_more_teachers_than_slots(collection: Collection, guidance: float) -> None:
    plan = replace(PLAN, batch=6, p_switch=0.8)
    roomy, tight = collection.worker(plan), collection.worker(plan)
    tight.teachers = TeacherCache(tight.adapters, 1)
    roomy.guidance = tight.guidance = guidance
    for r in range(3):
        expected, ours = roomy.roll(r, 0, 0), tight.roll(r, 0, 0)
        for name, column in expected.columns().items():
            if name != "seconds":
                np.testing.assert_allclose(getattr(ours, name), column, rtol=0, atol=2e-6)
    assert tight.teachers.loads > 3, "the plan never asks for two teachers at once"


def test_targets_of_more_teachers_than_slots(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.target_pool.load_editor", lambda *settings: tiny_editor())
    # The tiny editor has no scheduler: one forward stands for the sampler.
    monkeypatch.setattr("actors.target_pool.sample_teacher", one_forward)
    effects = collection.manifest.effects
    jobs = [
        TargetJob(f"{effect.name}.{i}", effect.adapter, effect.adapter_hash, sample, i)
        for i in range(2)
        for effect in effects
        for sample in effect.samples[i : i + 1]
    ]
    few, many = (made(jobs, collection, tmp_path / str(slots), slots) for slots in (2, 3))
    for job in jobs:
        assert torch.allclose(few.get(job.key), many.get(job.key), rtol=0, atol=2e-6), job.key


def one_forward(
    editor: Editor, conditions: Conditions, null: None, noise: Tensor, *settings: object
) -> Tensor:
    return editor.velocity(noise, torch.full([len(noise)], 0.5), conditions)


def made(
    jobs: Sequence[TargetJob], collection: Collection, folder: Path, slots: int
) -> TensorStore:
    """The targets that an actor of so many slots makes of the jobs in one batch."""
    stores = [str(path) for path in collection.folders]
    actor = TargetActor("", "cpu", "float32", 1, slots, stores, str(folder), 2, 1.0, False)
    rows = [job.row() for job in jobs]
    batch: dict[str, Any] = {name: [row[name] for row in rows] for name in TargetJob.COLUMNS}
    actor(batch)
    return TensorStore([folder])


def test_groups_keep_rows_of_one_teacher_together() -> None:
    cache = TeacherCache(Adapters(tiny_editor().transformer), 2)
    assert cache.groups(["a", None, "b", "a"]) == [[0, 1, 2, 3]]
    assert cache.groups(["a", "b", "c", None, "a", "c", "d", "e"]) == [[0, 1, 3, 4], [2, 5, 6], [7]]
    assert cache.groups([None, None]) == [[0, 1]]


def test_target_simulation_that_nobody_weighs_is_not_made(collection: Collection) -> None:
    plan = replace(PLAN, p_switch=1.0)
    whole, lean = collection.worker(plan), collection.worker(plan)
    lean.simulate = False
    ours, reference = lean.roll(0, 0, 0), whole.roll(0, 0, 0)
    # One student forward and the teacher's two there are what it takes.
    assert (reference.teacher_forwards - ours.teacher_forwards).tolist() == [3.0] * PLAN.batch
    np.testing.assert_allclose(ours.teacher_x0, reference.teacher_x0, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(ours.x_g, reference.x_g)
    assert not ours.ts_x0.any()
    assert reference.ts_x0.any()
