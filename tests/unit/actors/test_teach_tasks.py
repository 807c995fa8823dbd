"""What a lesson's task asks of its teachers."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from actors import teach_tasks
from actors.teach_tasks import Guide, teach_effect
from pipeline.config import LoraSettings
from pipeline.distill.lesson import Lesson
from pipeline.distill.teach import START, TEACHER, Kept, Noised, Pairs, TeachPlan, straight
from pipeline.models.adapters import BASE, Adapters
from pipeline.models.editor import Editor
from pipeline.models.lora_formats import read_lora
from pipeline.types import Bucket, Sample, Teacher
from tests.unit.distill.halves import Collection
from tests.unit.tiny import CHANNELS, MODULES, seeded, tiny_editor

WIDE: Bucket = ((1, 1, 3), (1, 1, 3))
TALL: Bucket = ((1, 2, 1), (1, 2, 1))
PLAN = TeachPlan(steps=3, batch=2, learning_rate=1e-3, cosine=False, ema=0.0, seed=1)


@pytest.fixture
def collection(tmp_path: Path) -> Collection:
    return Collection(tmp_path, [WIDE, TALL])


class Seen:
    """What ``teach`` was given."""

    buckets: Sequence[Pairs]
    kept: Sequence[Kept]
    wanted: Any


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()

    def teach(editor: Editor, adapters: Adapters, buckets: Any, plan: object, **rest: Any) -> Any:
        rest["on_step"](0, 0.0)
        found.buckets = buckets
        found.wanted, found.kept = rest["wanted"], rest["kept"]
        return adapters.state(TEACHER)

    monkeypatch.setattr(teach_tasks, "load_editor", lambda *settings: tiny_editor())
    monkeypatch.setattr(teach_tasks, "teach", teach)
    return found


def learn(lesson: Lesson, collection: Collection, guide: Guide, plan: TeachPlan = PLAN) -> None:
    lora = LoraSettings(rank=2, alpha=2.0, modules=MODULES)
    stores = tuple(map(str, collection.folders))
    teach_effect._function(lesson, "", "cpu", "float32", 1, lora, plan, stores, guide)


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("guide", [(1.0, False), (2.5, False), (2.5, True)])
def test_each_row_is_held_to_its_own_teachers_guided_velocity(
    collection: Collection, tmp_path: Path, seen: Seen, guide: tuple[float, bool], slots: int
) -> None:
    rows = [(s, e.teacher) for e in collection.manifest.effects for s in e.samples]
    pairs, teachers = tuple((s, s.target) for s, _ in rows), tuple(t for _, t in rows)
    lesson = Lesson("warm", pairs, tmp_path / "out.safetensors", 0, "student", teachers=teachers)
    scale, keep_norm = guide
    learn(lesson, collection, Guide(slots, scale, keep_norm))

    wide = [i for i, (sample, _) in enumerate(rows) if sample.shapes == WIDE]
    assert len(wide) == 6, "two of each effect"
    x, t = seeded((len(wide), 3, CHANNELS), 5), torch.linspace(0.1, 1.0, len(wide))
    batch = Noised(x, t, seen.buckets[0].conditions, x, x, 0, list(range(len(wide))))
    found = seen.wanted(batch)
    for row, number in enumerate(wide):
        sample, teacher = rows[number]
        expected = alone(collection, sample, teacher, x[row], t[row], scale, keep_norm)
        torch.testing.assert_close(found[row], expected, rtol=0, atol=3e-6)


def alone(
    collection: Collection,
    sample: Sample,
    teacher: Teacher,
    x: Tensor,
    t: Tensor,
    scale: float,
    keep_norm: bool,
) -> Tensor:
    """One sample under its teacher, written out, on an editor with nothing else on it."""
    fresh = tiny_editor()
    adapters = Adapters(fresh.transformer)
    adapters.add_file("it", read_lora(Path(teacher.adapter)))
    with torch.no_grad(), adapters.use("it"):
        cond, uncond = (
            fresh.velocity(x[None], t[None], collection.alone(sample, prompt))[0]
            for prompt in (sample.teacher_prompt, sample.null_prompt)
        )
    if scale == 1:
        return cond
    v = cond + (scale - 1) * (cond - uncond)
    if keep_norm:
        v = v * (cond.square().sum(-1) / v.square().sum(-1)).sqrt()[:, None]
    return v


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_it_learns_under_its_roles_prompts_and_a_student_under_no_other(
    collection: Collection, tmp_path: Path, seen: Seen, role: Any
) -> None:
    samples = collection.manifest.effects[1].samples
    pairs = tuple((s, str(s.target)) for s in samples if s.shapes == WIDE)
    learn(
        Lesson("one", pairs, tmp_path / "out.safetensors", 0, role),
        collection,
        Guide(1, 2.0, False),
    )
    (found,) = seen.buckets
    assert seen.wanted is straight
    for row, (sample, target) in enumerate(pairs):
        for conditions, prompt in (
            (found.conditions, getattr(sample, f"{role}_prompt")),
            (found.null, sample.null_prompt if role == "teacher" else sample.student_prompt),
        ):
            expected, ours = collection.alone(sample, prompt), conditions.rows([row])
            words = expected.embeds.shape[1]
            assert torch.equal(ours.embeds[:, :words], expected.embeds)
            assert torch.equal(ours.sources, expected.sources)
        assert torch.equal(found.targets[row], collection.store.get(target))


def test_what_is_kept_is_held_to_the_start_or_to_the_base(
    collection: Collection, tmp_path: Path, seen: Seen
) -> None:
    old, new = (collection.manifest.effects[i].samples for i in (0, 1))
    general = collection.manifest.general
    known, pairs = (tuple((s, str(s.target)) for s in some) for some in (old, new))
    rows = tuple((s, s.sources[-1]) for s in general)
    out = tmp_path / "out.safetensors"
    lesson = Lesson("grown", pairs, out, 0, "student", known=known, general=rows)
    learn(lesson, collection, Guide(1, 1.0, False), replace(PLAN, general=3))
    assert [(part.adapter, part.batch) for part in seen.kept] == [(START, 2), (BASE, 3)]
    assert [sum(len(p.targets) for p in part.pairs) for part in seen.kept] == [4, 3]
    learn(lesson, collection, Guide(1, 1.0, False), PLAN)
    assert [part.adapter for part in seen.kept] == [START]
