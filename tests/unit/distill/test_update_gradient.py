"""The student's gradient and all losses of a round, against slow code: one sample a forward."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.distill.noise import gaussian
from pipeline.distill.rates import RateSettings
from pipeline.distill.update import FAKE, STUDENT, StudentTrainer
from pipeline.plan import PlanSettings, Slot, round_anchors, round_slots
from pipeline.types import Rollout, Sample
from tests.unit.distill.halves import PLAN, SETTINGS, Collection
from tests.unit.tiny import CHANNELS

ROUND = 4
WEIGHTS = {"bs": 1.0, "ts": 0.5, "ta": 2.0}
SIGMAS = [3 * u / 8 / (1 + 2 * u / 8) for u in range(8, 0, -1)]


def noise(sample: Sample, purpose: str, r: int, i: int, index: int = 0) -> Tensor:
    return gaussian((sample.tokens, CHANNELS), PLAN.seed, purpose, r, 0, i, index)[None]


def noised(x: Tensor, e: Tensor, t: float) -> Tensor:
    return (1 - t) * x + t * e


class Slow:
    """The losses of one round, summed over slots; the student's still to be differentiated."""

    def __init__(self, collection: Collection, trainer: StudentTrainer, rollout: Rollout) -> None:
        self.collection, self.trainer, self.rollout = collection, trainer, rollout
        self.losses = dict.fromkeys(("fake", "bs", "ts", "ta"), 0.0)
        # Linear in the student's predictions, with the gradient that the paper gives them.
        self.surrogate = torch.zeros(())

    def velocity(self, name: str, x: Tensor, t: float, sample: Sample) -> Tensor:
        given = self.collection.alone(sample, sample.student_prompt)
        with self.trainer.adapters.use(name):
            return self.trainer.editor.velocity(x, torch.tensor([t]), given)

    def fake_score(self, r: int, i: int, slot: Slot, sample: Sample) -> None:
        for update, t in enumerate(slot.fake_ts):
            x0 = torch.as_tensor(self.rollout.fake_x0[i, update])[None]
            e = noise(sample, "fake", r, i, update)
            v = self.velocity(FAKE, noised(x0, e, t), t, sample).detach()
            self.losses["fake"] += float((v - (e - x0)).square().mean()) / len(slot.fake_ts)

    def matching(
        self,
        term: str,
        x_g: np.ndarray,
        teacher: np.ndarray,
        e: Tensor,
        t: float,
        sample: Sample,
        x_in: Tensor,
        t_in: float,
    ) -> None:
        """DMD at ``x_g`` noised by ``e`` to ``t``; the student makes x_g of ``x_in``, ``t_in``."""
        given, taught = torch.as_tensor(x_g)[None], torch.as_tensor(teacher)[None]
        x_t = noised(given, e, t)
        fake = x_t - t * self.velocity(FAKE, x_t, t, sample).detach()
        gradient = (fake - taught) / (given - taught).abs().mean()
        prediction = x_in - t_in * self.velocity(STUDENT, x_in, t_in, sample)
        self.losses[term] += float(0.5 * gradient.square().mean())
        self.surrogate = self.surrogate + WEIGHTS[term] * (gradient * prediction).mean()

    def anchoring(self, sample: Sample, e: Tensor, t: float, share: float) -> None:
        assert sample.target is not None
        y = self.trainer.store.get(sample.target)[None]
        v = self.velocity(STUDENT, noised(y, e, t), t, sample)
        loss = (v - (e - y)).square().mean()
        scale = self.trainer.settings.scale_ta
        if scale is not None:
            loss = scale - scale**2 / (scale + loss)
        loss = loss * share
        self.losses["ta"] += float(loss.detach())
        self.surrogate = self.surrogate + WEIGHTS["ta"] * loss


@pytest.mark.parametrize("ta_fm_batch", [0, 5])
def test_losses_and_gradient_equal_slow_code(collection: Collection, ta_fm_batch: int) -> None:
    plan = replace(PLAN, batch=4, ta_fm_batch=ta_fm_batch)
    assert_equal_to_slow_code(collection, plan, ROUND)


@pytest.mark.parametrize("ta_fm_batch", [0, 5])
def test_so_do_those_of_a_round_of_two_sources(mixed: Collection, ta_fm_batch: int) -> None:
    """Anchors of a bucket of their own take a forward of their own, with the same losses."""
    plan = mixed.plan(replace(PLAN, batch=4, ta_fm_batch=ta_fm_batch))

    def fits(r: int) -> bool:
        slots, anchors = round_slots(plan, r), round_anchors(plan, r)
        effects = sum(slot.effect is not None for slot in slots)
        apart = ta_fm_batch == 0 or anchors[0].bucket != slots[0].bucket
        return len(mixed.sample(slots[0]).sources) == 2 and 1 <= effects <= 3 and apart

    assert_equal_to_slow_code(mixed, plan, next(r for r in range(500) if fits(r)))


def test_so_do_those_of_anchors_that_let_go(collection: Collection) -> None:
    plan = replace(PLAN, batch=4, ta_fm_batch=5)
    assert_equal_to_slow_code(collection, plan, ROUND, scale_ta=0.5)


def assert_equal_to_slow_code(
    collection: Collection, plan: PlanSettings, r: int, scale_ta: float | None = None
) -> None:
    ta_fm_batch = plan.ta_fm_batch
    calls: list[list[Tensor]] = []

    def watch(gradients: Sequence[Tensor]) -> None:
        calls.append([g.clone() for g in gradients])

    # A fake score that stands still is the same for all of the round.
    settings = replace(
        SETTINGS,
        fake_rate=RateSettings(0.0, 0, "constant"),
        weight_bs=WEIGHTS["bs"],
        weight_ts=WEIGHTS["ts"],
        weight_ta=WEIGHTS["ta"],
        scale_ta=scale_ta,
    )
    trainers = [collection.trainer(plan, settings, watch) for _ in range(2)]
    for trainer in trainers:
        for k, name in enumerate((STUDENT, FAKE)):
            state = trainer.adapters.state(name)
            trainer.adapters.replace(name, {n: v + 0.02 * (k + 1) for n, v in state.items()})
    worker = collection.worker(plan)
    worker.load_policy(trainers[0].policy())
    rollout = worker.roll(r, 0, 0)

    slow = Slow(collection, trainers[1], rollout)
    slots = round_slots(plan, r)
    effects = [i for i, s in enumerate(slots) if s.effect is not None]
    assert 1 <= len(effects) <= 3, "both streams in one round"
    samples = [collection.sample(slot) for slot in slots]
    for i, (slot, sample) in enumerate(zip(slots, samples, strict=True)):
        slow.fake_score(r, i, slot, sample)
        x_k = torch.as_tensor(rollout.x_k[i])[None]
        slow.matching(
            "bs",
            rollout.x_g[i],
            rollout.teacher_x0[i],
            noise(sample, "score", r, i),
            slot.t,
            sample,
            x_k,
            SIGMAS[slot.step],
        )
        if slot.effect is not None:
            assert sample.target is not None
            t_gen = SIGMAS[slot.ts_step]
            x_gen = noised(
                collection.store.get(sample.target)[None], noise(sample, "ts_gen", r, i), t_gen
            )
            slow.matching(
                "ts",
                rollout.ts_x0[i],
                rollout.ts_teacher_x0[i],
                noise(sample, "ts_critic", r, i),
                slot.ts_t,
                sample,
                x_gen,
                t_gen,
            )
    if ta_fm_batch:
        for j, anchor in enumerate(round_anchors(plan, r)):
            sample = collection.sample(anchor)
            # As heavy as p_switch of the slots, whatever its size.
            share = plan.p_switch * len(slots) / ta_fm_batch
            slow.anchoring(sample, noise(sample, "anchor", r, j), anchor.t, share)
    else:
        for j, i in enumerate(effects):
            e = noise(samples[i], "anchor", r, j)
            slow.anchoring(samples[i], e, slots[i].t, 1.0)
    (slow.surrogate / len(slots)).backward()
    expected = [p.grad for p in trainers[1].adapters.parameters(STUDENT) if p.grad is not None]

    metrics = trainers[0].update(rollout, r, 0)
    for name, total in slow.losses.items():
        key = {"fake": "loss_fake", "ta": "loss_ta_fm"}.get(name, f"loss_dmd_{name}")
        assert total > 0
        assert metrics[key] == pytest.approx(total / len(slots), rel=1e-4), key
    found = calls[-1]
    assert len(found) == len(expected)
    scale = max(float(g.abs().max()) for g in expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * scale
    assert metrics["grad_norm_student"] == pytest.approx(
        float(torch.stack([g.square().sum() for g in expected]).sum().sqrt()), rel=1e-4
    )
