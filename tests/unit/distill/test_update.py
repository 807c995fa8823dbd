"""One whole round, both halves, in one process: costs, independence of rows, gradients."""

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pipeline.distill.noise import gaussian
from pipeline.distill.rollout import RolloutWorker
from pipeline.distill.update import FAKE, STUDENT
from pipeline.models.adapters import BASE, TeacherCache
from pipeline.plan import round_slots
from pipeline.types import Rollout
from tests.unit.distill.halves import GUIDANCE, PLAN, SETTINGS, Collection, go_on
from tests.unit.tiny import CHANNELS


def test_rounds_run_and_move_both(collection: Collection) -> None:
    trainer = collection.trainer()
    before = {
        n: {k: v.clone() for k, v in trainer.adapters.state(n).items()} for n in (STUDENT, FAKE)
    }
    metrics = go_on(collection.worker(), trainer, range(3), deque([trainer.policy()], maxlen=1))
    assert all(np.isfinite(list(m.values())).all() for m in metrics)
    for name, old in before.items():
        assert any(not torch.equal(v, old[k]) for k, v in trainer.adapters.state(name).items())
    assert all(m["loss_fake"] > 0 and m["loss_dmd_bs"] > 0 for m in metrics)
    assert [m["learning_rate_student"] for m in metrics] == sorted(
        m["learning_rate_student"] for m in metrics
    )
    # At lag 0 the student in training is the one that made the rollout.
    assert all(m["policy_moved"] < 1e-6 for m in metrics)
    # The average stays behind the live weights.
    assert trainer.average is not None
    assert any(not torch.equal(v, trainer.average[k]) for k, v in trainer.policy().items())


def test_a_lagging_policy_is_seen_as_such(collection: Collection) -> None:
    trainer = collection.trainer()
    metrics = go_on(collection.worker(), trainer, range(3), deque([trainer.policy()], maxlen=2))
    assert metrics[0]["policy_moved"] < 1e-6
    # Updates that begin at B = 0 move little: still far more than rounding does.
    assert metrics[2]["policy_moved"] > 1e-5


class Count:
    """Sample-forwards of a transformer by a hook of the test's own."""

    def __init__(self, transformer: nn.Module) -> None:
        self.plain, self.differentiated = 0, 0
        transformer.register_forward_hook(self._hook, with_kwargs=True)

    def _hook(
        self, module: nn.Module, args: object, kwargs: dict[str, Tensor], out: object
    ) -> None:
        samples = len(kwargs["hidden_states"])
        if torch.is_grad_enabled():
            self.differentiated += samples
        else:
            self.plain += samples


@pytest.mark.parametrize(("p_switch", "student", "teacher"), [(1.0, 26, 13), (0.0, 19, 10)])
def test_forwards_per_student_update(
    collection: Collection, p_switch: float, student: int, teacher: int
) -> None:
    plan = replace(PLAN, p_switch=p_switch)
    worker, trainer = collection.worker(plan), collection.trainer(plan)
    pool, group = Count(worker.editor.transformer), Count(trainer.editor.transformer)
    rollout = worker.roll(0, 0, 0)
    metrics = trainer.update(rollout, 0, 0)
    assert (pool.plain, pool.differentiated) == (teacher * PLAN.batch, 0)
    assert group.plain + 3 * group.differentiated == student * PLAN.batch
    assert student + teacher <= 41
    # What the project reports is what was counted.
    assert metrics["forwards_student_group"] == student
    assert rollout.teacher_forwards.tolist() == [teacher] * PLAN.batch
    # Counted apart from round to round.
    assert trainer.update(worker.roll(1, 0, 0), 1, 0)["forwards_student_group"] == student


def test_general_slots_cost_no_target_simulation_and_no_anchoring(collection: Collection) -> None:
    plan = replace(PLAN, batch=4)
    r = next(r for r in range(99) if sum(s.effect is not None for s in round_slots(plan, r)) == 1)
    worker, trainer = collection.worker(plan), collection.trainer(plan)
    rollout = worker.roll(r, 0, 0)
    metrics = trainer.update(rollout, r, 0)
    assert rollout.teacher_forwards[0] * 4 == 13 + 3 * 10
    assert metrics["forwards_student_group"] * 4 == 26 + 3 * 19
    general = [i for i, s in enumerate(round_slots(plan, r)) if s.effect is None]
    assert not rollout.ts_x0[general].any()
    assert not rollout.ts_teacher_x0[general].any()
    effect = set(range(4)) - set(general)
    assert rollout.ts_x0[list(effect)].any()


def _reference_row(
    worker: RolloutWorker, collection: Collection, r: int, i: int
) -> dict[str, Tensor]:
    """Slot i of round r done alone: one sample a forward, nothing padded, written out."""
    plan, store = worker.plan, worker.store
    slot = round_slots(plan, r)[i]
    sample, adapter = collection.sample(slot), BASE
    if slot.effect is not None:
        entry = collection.manifest.effects[slot.effect]
        adapter = entry.adapter_hash
        worker.teachers.ensure({adapter: Path(entry.adapter)})

    def noise(purpose: str, index: int = 0) -> Tensor:
        return gaussian((sample.tokens, CHANNELS), plan.seed, purpose, r, 0, i, index)[None]

    def x0(x: Tensor, t: float, name: str, prompt: str) -> Tensor:
        given = collection.alone(sample, prompt)
        with worker.adapters.use(name), torch.no_grad():
            return x - t * worker.editor.velocity(x, torch.tensor([t]), given)

    def taught(x: Tensor, t: float) -> Tensor:
        cond = x0(x, t, adapter, sample.teacher_prompt)
        return cond + (GUIDANCE - 1) * (cond - x0(x, t, adapter, sample.null_prompt))

    def noised(x: Tensor, e: Tensor, t: float) -> Tensor:
        return (1 - t) * x + t * e

    sigmas = [3 * u / 8 / (1 + 2 * u / 8) for u in range(8, 0, -1)]
    inputs, outputs = [noise("start")], []
    for k, sigma in enumerate(sigmas):
        outputs.append(x0(inputs[-1], sigma, STUDENT, sample.student_prompt))
        if k < 7:
            inputs.append(noised(outputs[-1], noise("renoise", k + 1), sigmas[k + 1]))
    x_g = outputs[slot.step]
    row = {
        "x_k": inputs[slot.step],
        "x_g": x_g,
        "teacher_x0": taught(noised(x_g, noise("score"), slot.t), slot.t),
        "fake_x0": torch.stack([outputs[k] for k in slot.fake_steps], 1),
    }
    if slot.effect is not None:
        assert sample.target is not None
        t_gen = sigmas[slot.ts_step]
        y = store.get(sample.target)[None]
        y_hat = x0(noised(y, noise("ts_gen"), t_gen), t_gen, STUDENT, sample.student_prompt)
        row["ts_x0"] = y_hat
        row["ts_teacher_x0"] = taught(noised(y_hat, noise("ts_critic"), slot.ts_t), slot.ts_t)
    return row


def test_rows_of_a_batch_do_not_see_each_other(collection: Collection) -> None:
    plan = replace(PLAN, batch=6)
    worker = collection.worker(plan)
    weights = worker.adapters.state(STUDENT)
    worker.load_policy({k: v + 0.02 for k, v in weights.items()})
    rollout = worker.roll(4, 0, 0)
    slots = round_slots(plan, 4)
    assert len({s.effect for s in slots}) >= 3, "a round with several teachers and the base"
    assert None in {s.effect for s in slots}
    for i in range(6):
        for name, alone in _reference_row(worker, collection, 4, i).items():
            difference = np.abs(getattr(rollout, name)[i] - alone[0].numpy()).max()
            assert difference < 1e-4, (i, name)


def test_a_round_is_of_one_bucket_and_its_rows_are_as_if_alone(mixed: Collection) -> None:
    plan = mixed.plan(replace(PLAN, batch=2))
    worker = mixed.worker(plan)
    weights = worker.adapters.state(STUDENT)
    worker.load_policy({k: v + 0.02 for k, v in weights.items()})
    rounds = {round_slots(plan, r)[0].bucket: r for r in range(20)}
    assert rounds.keys() == {0, 1, 2}
    for bucket, r in rounds.items():
        rollout = worker.roll(r, 0, 0)
        _, rows, columns = mixed.manifest.buckets[bucket][0]
        assert rollout.x_g.shape == (2, rows * columns, CHANNELS)
        for i in range(2):
            for name, alone in _reference_row(worker, mixed, r, i).items():
                difference = np.abs(getattr(rollout, name)[i] - alone[0].numpy()).max()
                assert difference < 1e-4, (bucket, i, name)


def test_one_process_may_hold_both_halves_on_one_base(collection: Collection) -> None:
    apart = collection.trainer()
    expected = go_on(collection.worker(), apart, range(3), deque([apart.policy()], maxlen=1))

    trainer = collection.trainer()
    worker = RolloutWorker(
        trainer.editor,
        trainer.adapters,
        TeacherCache(trainer.adapters, 3),
        collection.store,
        collection.manifest,
        PLAN,
        GUIDANCE,
    )
    found = go_on(worker, trainer, range(3), deque([trainer.policy()], maxlen=1))
    assert found == expected
    assert all(torch.equal(v, apart.policy()[k]) for k, v in trainer.policy().items())


def test_gradient_checkpointing_changes_nothing_but_memory(collection: Collection) -> None:
    plain, thrifty = collection.trainer(), collection.trainer()
    thrifty.editor.transformer.enable_gradient_checkpointing()
    for trainer in (plain, thrifty):
        go_on(collection.worker(), trainer, range(2), deque([trainer.policy()], maxlen=1))
    for key, value in plain.policy().items():
        assert torch.allclose(thrifty.policy()[key], value, atol=1e-4), key


def test_all_gradients_pass_through_the_groups_average(collection: Collection) -> None:
    seen: list[int] = []

    def halve(gradients: Sequence[Tensor]) -> None:
        seen.append(len(gradients))
        for g in gradients:
            assert isinstance(g, Tensor)
            g.mul_(0.0)

    trainer = collection.trainer(all_reduce=halve)
    before = trainer.policy()
    metrics = trainer.update(collection.worker().roll(0, 0, 0), 0, 0)
    # Five fake updates and one of the student, the same tensors at each.
    assert len(seen) == 6
    assert len(set(seen)) == 1
    assert metrics["grad_norm_student"] == metrics["grad_norm_fake"] == 0
    assert all(torch.equal(v, before[k]) for k, v in trainer.policy().items())


def test_anchors_of_their_own_weigh_as_the_slots_would(collection: Collection) -> None:
    plan = replace(PLAN, ta_fm_batch=7)
    trainer = collection.trainer(plan)
    metrics = trainer.update(collection.worker(plan).roll(0, 0, 0), 0, 0)
    slots = round_slots(plan, 0)
    effects = sum(s.effect is not None for s in slots)
    expected = 5 * 3 * 3 + 4 * 3 + 4 * effects + 3 * 7
    assert metrics["forwards_student_group"] * 3 == pytest.approx(expected)
    assert metrics["loss_ta_fm"] > 0


def test_weights_of_zero_leave_a_loss_and_its_cost_out(collection: Collection) -> None:
    plan = replace(PLAN, p_switch=1.0)
    settings = replace(SETTINGS, weight_ts=0.0, weight_ta=0.0)
    trainer = collection.trainer(plan, settings)
    metrics = trainer.update(collection.worker(plan).roll(0, 0, 0), 0, 0)
    assert metrics["forwards_student_group"] == 19
    assert metrics["loss_dmd_ts"] == metrics["loss_ta_fm"] == 0


def test_the_wrong_rollout_is_refused(collection: Collection) -> None:
    rollout = collection.worker().roll(1, 0, 0)
    again = Rollout.from_columns(rollout.columns())
    assert all(np.array_equal(v, getattr(again, k)) for k, v in rollout.columns().items())
    with pytest.raises(ValueError, match="round 0, rank 0 got"):
        collection.trainer().update(rollout, 0, 0)
    with pytest.raises(ValueError, match="rank 1 got"):
        collection.trainer().update(rollout, 1, 1)
