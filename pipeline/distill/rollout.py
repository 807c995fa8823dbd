"""The teacher pool's half of a round: the student's rollout, then the teachers' scores on it.

Runs without gradients, anywhere, under a given policy. Per effect slot it costs S forwards for
the trajectory, 1 for target simulation and 2 x 2 for the guided teacher; per general slot
S + 2. Guidance 1 is none and needs no unconditional half: 2 and 1 less. Everything is batched
across slots, effects mixed.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.distill.batches import SlotBatch, conditions_of
from pipeline.distill.counting import ForwardCounter
from pipeline.distill.losses import guided_x0
from pipeline.distill.noise import gaussian_batch
from pipeline.distill.sampler import student_trajectory
from pipeline.distill.schedule import add_noise, as_sigma, predict_x0, student_sigmas
from pipeline.distill.teacher_field import TeacherField
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.editor import Conditions, Editor
from pipeline.plan import PlanSettings, Slot, round_slots
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest, Rollout

STUDENT = "student"


@dataclass
class RolloutWorker:
    """One process's base, adapters and data; see :meth:`roll`."""

    editor: Editor
    adapters: Adapters
    teachers: TeacherCache
    store: TensorStore
    manifest: Manifest
    plan: PlanSettings
    guidance: float
    simulate: bool = True

    def __post_init__(self) -> None:
        self.counter = ForwardCounter(self.editor.transformer)

    def load_policy(self, weights: Mapping[str, Tensor]) -> None:
        """Take a policy's weights into the student adapter, in place."""
        self.adapters.replace(STUDENT, weights)

    @torch.no_grad()
    def roll(self, round_index: int, rank: int, policy_version: int) -> Rollout:
        """The rollout of one (round, rank) under the loaded policy, as numpy rows."""
        start = time.monotonic()
        self.counter.take()
        plan, device = self.plan, self.editor.device
        slots = round_slots(plan, round_index, rank)
        batch = SlotBatch.load(slots, self.manifest, self.store)
        student = conditions_of(batch.samples, "student", self.store).to(device)
        shape = batch.token_shape
        sigmas = student_sigmas(plan.student_steps, plan.shift)

        def noise(purpose: str, index: int = 0) -> Tensor:
            keys = [(plan.seed, purpose, round_index, rank, i, index) for i in range(len(slots))]
            return gaussian_batch(shape, keys).to(device)

        with self.adapters.use(STUDENT):
            inputs, predictions = student_trajectory(
                lambda x, t: self.editor.velocity(x, t, student),
                noise("start"),
                lambda k: noise("renoise", k),
                sigmas,
            )
        rows = torch.arange(len(slots))
        steps = torch.tensor([s.step for s in slots])
        x_k, x_g = inputs[steps, rows], predictions[steps, rows]
        fake_x0 = torch.stack([predictions[list(s.fake_steps), i] for i, s in enumerate(slots)])
        x_t = add_noise(x_g, noise("score"), as_sigma([s.t for s in slots], device))

        ts_x0 = torch.zeros_like(x_g)
        # Where nothing weighs target simulation, its columns stay 0 and nobody reads them.
        effect_rows = batch.effect_rows if self.simulate else []
        queries = _Queries.of(x_t, [s.t for s in slots], list(range(len(slots))))
        if effect_rows:
            ts_x0[effect_rows] = self._target_simulation(slots, batch, student, sigmas, noise)
            x_critic = add_noise(
                ts_x0, noise("ts_critic"), as_sigma([s.ts_t for s in slots], device)
            )
            queries = queries.plus(x_critic, [s.ts_t for s in slots], effect_rows)
        scores = self._teach(queries, slots, batch)
        ts_teacher = torch.zeros_like(x_g)
        ts_teacher[effect_rows] = scores[len(slots) :]

        count, cost = len(slots), self.counter.take()
        return Rollout(
            round=np.full(count, round_index),
            rank=np.full(count, rank),
            policy_version=np.full(count, policy_version),
            x_k=_numpy(x_k),
            x_g=_numpy(x_g),
            teacher_x0=_numpy(scores[: len(slots)]),
            fake_x0=_numpy(fake_x0),
            ts_x0=_numpy(ts_x0),
            ts_teacher_x0=_numpy(ts_teacher),
            teacher_forwards=np.full(count, cost / count),
            seconds=np.full(count, time.monotonic() - start),
        )

    def _target_simulation(
        self,
        slots: list[Slot],
        batch: SlotBatch,
        student: Conditions,
        sigmas: list[float],
        noise: Callable[[str], Tensor],
    ) -> Tensor:
        """y noised to t_gen < tau_max and denoised once by the student: ``[E, N, C]``."""
        rows = batch.effect_rows
        t_gen = as_sigma([sigmas[slots[i].ts_step] for i in rows], self.editor.device)
        y = batch.targets(self.store).to(self.editor.device)
        x_gen = add_noise(y, noise("ts_gen")[rows], t_gen)
        with self.adapters.use(STUDENT):
            return predict_x0(x_gen, self.editor.velocity(x_gen, t_gen, student.rows(rows)), t_gen)

    def _teach(self, queries: "_Queries", slots: list[Slot], batch: SlotBatch) -> Tensor:
        """Guided x0 of each query's own teacher."""
        effects = [slots[i].effect for i in queries.rows]
        teachers = [None if e is None else self.manifest.effects[e].teacher for e in effects]
        samples = [batch.samples[i] for i in queries.rows]
        x, t = queries.x, as_sigma(queries.t, self.editor.device)
        field = TeacherField(self.editor, self.adapters, self.teachers, self.store, self.guidance)
        cond, uncond = field.velocities(x, t, samples, teachers)
        if uncond is None:
            return predict_x0(x, cond, t)
        return guided_x0(predict_x0(x, cond, t), predict_x0(x, uncond, t), self.guidance)


@dataclass(frozen=True)
class _Queries:
    """Noised samples ``x`` ``[Q, N, C]`` that teachers are asked about, and their slots."""

    x: Tensor
    t: list[float]
    rows: list[int]

    @classmethod
    def of(cls, x: Tensor, t: list[float], rows: list[int]) -> "_Queries":
        return cls(x[rows], [t[i] for i in rows], rows)

    def plus(self, x: Tensor, t: list[float], rows: list[int]) -> "_Queries":
        more = _Queries.of(x, t, rows)
        return _Queries(torch.cat([self.x, more.x]), self.t + more.t, self.rows + more.rows)


def _numpy(x: Tensor) -> "np.ndarray[tuple[int, ...], np.dtype[np.float32]]":
    return x.float().cpu().numpy()
