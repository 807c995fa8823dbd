"""The student group's half of a round: fake-score updates, then one student update.

Per sample, in forwards (a forward with backward is 3): F x 3 for the fake score; for the
student 3 (DMD_BS) + 3 (DMD_TS) + 3 (TA-FM) and 2 for the fake score's opinion on them: 26 in
the effect stream at F = 5. Only this half needs gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from pipeline.distill.batches import SlotBatch, anchor_samples, conditions_of, targets_of
from pipeline.distill.counting import ForwardCounter
from pipeline.distill.losses import dmd_gradient, dmd_loss, flow_matching_loss
from pipeline.distill.noise import gaussian_batch
from pipeline.distill.rates import RateSettings, rate_at
from pipeline.distill.schedule import add_noise, as_sigma, predict_x0, student_sigmas
from pipeline.distill.signals import by_sigma, by_stream
from pipeline.models.adapters import Adapters
from pipeline.models.editor import Conditions, Editor, concatenate
from pipeline.models.sharding import whole
from pipeline.plan import PlanSettings, Slot, round_anchors, round_slots
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest, Rollout

STUDENT, FAKE = "student", "fake"
# Averages gradients over the student group in place; the identity for one worker, and where
# sharding has averaged them already.
AllReduce = Callable[[Sequence[Tensor]], None]


@dataclass(frozen=True)
class UpdateSettings:
    """Rates, weights and bounds of the update; see ``config.DistillSettings``."""

    rounds: int
    student_rate: RateSettings
    fake_rate: RateSettings
    betas: tuple[float, float]
    grad_clip: float
    ema: float
    weight_bs: float
    weight_ts: float
    weight_ta: float


@dataclass
class StudentTrainer:
    """Student and fake-score adapters on one frozen base, with their optimizers.

    ``average`` is the exponential moving average of the student (what is evaluated and
    exported), or None, kept as the live weights are: on the device, in this worker's share; the
    live weights are the policy.
    """

    editor: Editor
    adapters: Adapters
    store: TensorStore
    manifest: Manifest
    plan: PlanSettings
    settings: UpdateSettings
    all_reduce: AllReduce
    average: dict[str, Tensor] | None = field(default=None)

    def __post_init__(self) -> None:
        self.adapters.train_only(STUDENT, FAKE)
        self.student_optimizer = self._optimizer(STUDENT)
        self.fake_optimizer = self._optimizer(FAKE)
        self.counter = ForwardCounter(self.editor.transformer)
        if self.settings.ema > 0 and self.average is None:
            live = self.adapters.state(STUDENT)
            self.average = {k: v.detach().clone() for k, v in live.items()}

    def _optimizer(self, name: str) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            self.adapters.parameters(name), lr=0.0, betas=self.settings.betas, weight_decay=0.0
        )

    def policy(self, keep: bool = True) -> dict[str, Tensor]:
        """A copy of the live student weights, on the CPU.

        A sharded group's workers all ask, for gathering takes all; without ``keep`` this one only
        takes part.
        """
        policy: dict[str, Tensor] = {}
        for key, value in self.adapters.state(STUDENT).items():
            tensor = whole(value.detach())
            if keep:
                policy[key] = tensor.cpu().clone()
        return policy

    def update(self, rollout: Rollout, round_index: int, rank: int) -> dict[str, float]:
        """One round on one worker; returns its metrics.

        Raises:
            ValueError: the rollout is of another round or rank.
        """
        if set(rollout.round.tolist()) != {round_index} or set(rollout.rank.tolist()) != {rank}:
            raise ValueError(
                f"round {round_index}, rank {rank} got the rollout of round "
                f"{rollout.round.tolist()}, rank {rollout.rank.tolist()}"
            )
        self.counter.take()
        slots = round_slots(self.plan, round_index, rank)
        batch = SlotBatch.load(slots, self.manifest, self.store)
        seeds = _Seeds(self.plan.seed, round_index, rank, batch.token_shape, self.editor.device)
        conditions = conditions_of(batch.samples, "student", self.store).to(self.editor.device)
        metrics = self._update_fake(rollout, slots, conditions, seeds, round_index)
        metrics |= self._update_student(rollout, slots, batch, conditions, seeds, round_index)
        metrics["forwards_student_group"] = self.counter.take() / len(slots)
        return metrics

    def _update_fake(
        self,
        rollout: Rollout,
        slots: list[Slot],
        conditions: Conditions,
        seeds: "_Seeds",
        round_index: int,
    ) -> dict[str, float]:
        rate = rate_at(self.settings.fake_rate, round_index, self.settings.rounds)
        losses, norm = [], 0.0
        sigmas: list[float] = []
        errors: list[Tensor] = []
        fake_x0 = _tensor(rollout.fake_x0, self.editor.device)
        for update in range(self.plan.fake_updates):
            x0 = fake_x0[:, update]
            t = as_sigma([s.fake_ts[update] for s in slots], self.editor.device)
            noise = seeds.gaussian("fake", len(slots), update)
            with self.adapters.use(FAKE):
                v = self.editor.velocity(add_noise(x0, noise, t), t, conditions)
            each = flow_matching_loss(v, x0, noise)
            loss = each.mean()
            sigmas += [s.fake_ts[update] for s in slots]
            errors.append(each.detach())
            norm = self._step(FAKE, self.fake_optimizer, loss, rate)
            losses.append(loss.item())
        return {
            "loss_fake": sum(losses) / len(losses),
            "grad_norm_fake": norm,
            "learning_rate_fake": rate,
        } | by_sigma("loss_fake", sigmas, torch.cat(errors))

    def _update_student(
        self,
        rollout: Rollout,
        slots: list[Slot],
        batch: SlotBatch,
        conditions: Conditions,
        seeds: "_Seeds",
        round_index: int,
    ) -> dict[str, float]:
        device, settings, count = self.editor.device, self.settings, len(slots)
        sigmas = student_sigmas(self.plan.student_steps, self.plan.shift)
        rows = batch.effect_rows if settings.weight_ts > 0 else []
        x_g = _tensor(rollout.x_g, device)
        ts_x0 = _tensor(rollout.ts_x0, device)[rows]

        # The fake score's opinion, at the very points where the teacher gave its own.
        t_score = as_sigma([s.t for s in slots], device)
        t_critic = as_sigma([slots[i].ts_t for i in rows], device)
        critic = seeds.gaussian("ts_critic", count)[rows]
        asked = torch.cat(
            [
                add_noise(x_g, seeds.gaussian("score", count), t_score),
                add_noise(ts_x0, critic, t_critic),
            ]
        )
        t_asked = torch.cat([t_score, t_critic])
        with torch.no_grad(), self.adapters.use(FAKE):
            v = self.editor.velocity(
                asked, t_asked, _joined(conditions, conditions.rows(rows) if rows else None)
            )
        fake_x0 = predict_x0(asked, v, t_asked)
        gradient_bs = dmd_gradient(x_g, fake_x0[:count], _tensor(rollout.teacher_x0, device))
        teacher_ts = _tensor(rollout.ts_teacher_x0, device)[rows]
        gradient_ts = dmd_gradient(ts_x0, fake_x0[count:], teacher_ts)

        # One student forward for all three losses, if the anchors are of the slots' bucket.
        anchors = self._anchors(batch, seeds, slots, round_index)
        t_k = as_sigma([sigmas[s.step] for s in slots], device)
        t_gen = as_sigma([sigmas[slots[i].ts_step] for i in rows], device)
        x_in, t_in = [_tensor(rollout.x_k, device)], [t_k]
        cond_in = [conditions]
        if rows:
            y = targets_of([batch.samples[i] for i in rows], self.store).to(device)
            x_in.append(add_noise(y, seeds.gaussian("ts_gen", count)[rows], t_gen))
            t_in.append(t_gen)
            cond_in.append(conditions.rows(rows))
        if anchors is not None and anchors.conditions.shapes == conditions.shapes:
            x_in.append(add_noise(anchors.y, anchors.noise, anchors.t))
            t_in.append(anchors.t)
            cond_in.append(anchors.conditions)
        x, t = torch.cat(x_in), torch.cat(t_in)
        with self.adapters.use(STUDENT):
            v = self.editor.velocity(x, t, _joined(*cond_in))
            v_anchors = v[count + len(rows) :]
            if anchors is not None and len(v_anchors) == 0:
                x_anchors = add_noise(anchors.y, anchors.noise, anchors.t)
                v_anchors = self.editor.velocity(x_anchors, anchors.t, anchors.conditions)
        x0 = predict_x0(x, v, t)
        # Absent slots count as zeros, so that a slot's pull does not depend on the others.
        loss_bs = dmd_loss(x0[:count], gradient_bs).mean()
        loss_ts = dmd_loss(x0[count : count + len(rows)], gradient_ts).sum() / count
        loss_ta = x0.new_zeros(())
        if anchors is not None:
            each = flow_matching_loss(v_anchors, anchors.y, anchors.noise)
            loss_ta = each.mean() * anchors.share
        loss = (
            settings.weight_bs * loss_bs
            + settings.weight_ts * loss_ts
            + settings.weight_ta * loss_ta
        )
        rate = rate_at(settings.student_rate, round_index, settings.rounds)
        norm = self._step(STUDENT, self.student_optimizer, loss, rate)
        self._follow()
        moved = (x0[:count].detach() - x_g).abs().mean()
        gap = (fake_x0[:count] - _tensor(rollout.teacher_x0, device)).abs().mean(dim=(1, 2))
        names = [None if s.effect is None else self.manifest.effects[s.effect].name for s in slots]
        return {
            "loss_dmd_bs": loss_bs.item(),
            "loss_dmd_ts": loss_ts.item(),
            "loss_ta_fm": loss_ta.item(),
            "grad_norm_student": norm,
            "learning_rate_student": rate,
            "dmd_gradient": gradient_bs.abs().mean().item(),
            "dmd_gradient_ts": gradient_ts.abs().mean().item() if rows else 0.0,
            "teacher_fake_gap": gap.mean().item(),
            "effect_share": len(batch.effect_rows) / count,
            # 0 at lag 0: the student is still the one that made the rollout.
            "policy_moved": moved.item(),
        } | by_stream("teacher_fake_gap", names, gap)

    def _anchors(
        self, batch: SlotBatch, seeds: "_Seeds", slots: list[Slot], round_index: int
    ) -> "_Anchors | None":
        """TA-FM's samples: its own batch where the recipe has one, else the effect slots'."""
        if self.settings.weight_ta == 0:
            return None
        device = self.editor.device
        if self.plan.ta_fm_batch > 0:
            drawn = round_anchors(self.plan, round_index, seeds.rank)
            samples = anchor_samples(drawn, self.manifest)
            times = [a.t for a in drawn]
            # The weight is per effect slot, as in the paper, whatever the batch.
            share = self.plan.p_switch
        else:
            samples = [batch.samples[i] for i in batch.effect_rows]
            times = [slots[i].t for i in batch.effect_rows]
            share = len(samples) / len(slots)
        if not samples:
            return None
        y = targets_of(samples, self.store).to(device)
        return _Anchors(
            y=y,
            noise=replace(seeds, shape=(y.shape[1], y.shape[2])).gaussian("anchor", len(samples)),
            t=as_sigma(times, device),
            conditions=conditions_of(samples, "student", self.store).to(device),
            share=share,
        )

    def _step(self, name: str, optimizer: torch.optim.AdamW, loss: Tensor, rate: float) -> float:
        """Backward, average over the group, clip, step; returns the gradient's norm."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        with self.adapters.use(name):
            loss.backward()  # type: ignore[no-untyped-call]
        # Nothing reads the prompt stream's end in the last block: no gradient there.
        self.all_reduce([p.grad for p in parameters if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip)
        optimizer.step()
        # The other adapter's update must not find these still on the card.
        optimizer.zero_grad(set_to_none=True)
        return whole(norm).item()

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average is not None:
            for key, value in self.adapters.state(STUDENT).items():
                self.average[key].lerp_(value.detach(), 1 - self.settings.ema)


@dataclass(frozen=True)
class _Anchors:
    y: Tensor
    noise: Tensor
    t: Tensor
    conditions: Conditions
    share: float


@dataclass(frozen=True)
class _Seeds:
    """The noise of one round; purposes shared with the rollout give the same numbers there."""

    seed: int
    round: int
    rank: int
    shape: tuple[int, int]
    device: torch.device

    def gaussian(self, purpose: str, count: int, index: int = 0) -> Tensor:
        keys = [(self.seed, purpose, self.round, self.rank, i, index) for i in range(count)]
        return gaussian_batch(self.shape, keys).to(self.device)


def _joined(*parts: Conditions | None) -> Conditions:
    present = [p for p in parts if p is not None]
    return present[0] if len(present) == 1 else concatenate(*present)


def _tensor(array: object, device: torch.device) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32).to(device)
