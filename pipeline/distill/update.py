"""The student group's half of a round: fake-score updates, then one student update.

Per sample, in forwards (a forward with backward is 3): F x 3 for the fake score; for the
student 3 (DMD_BS) + 3 (DMD_TS) + 3 (TA-FM) and 2 for the fake score's opinion on them: 26 in
the effect stream at F = 5. Only this half needs gradients.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from pipeline.distill.batches import targets_of
from pipeline.distill.block import Anchors, Block
from pipeline.distill.counting import ForwardCounter
from pipeline.distill.dealing import Dealing
from pipeline.distill.losses import dmd_gradient, dmd_loss, flow_matching_loss, robust
from pipeline.distill.rates import rate_at
from pipeline.distill.schedule import add_noise, as_sigma, predict_x0, student_sigmas
from pipeline.distill.signals import by_sigma, by_stream
from pipeline.distill.update_settings import UpdateSettings
from pipeline.models.adapters import Adapters
from pipeline.models.editor import Conditions, Editor, concatenate
from pipeline.models.sharding import whole
from pipeline.plan import PlanSettings
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest, Rollout

STUDENT, FAKE = "student", "fake"
# Averages gradients over the student group in place; the identity for one worker, and where
# sharding has averaged them already.
AllReduce = Callable[[Sequence[Tensor]], None]
# Of a part of a block, and the block's weight in the step.
WeightedLoss = tuple[Tensor, float]


@dataclass
class StudentTrainer:
    """Student and fake-score adapters on one frozen base, with their optimizers.

    ``average`` is the exponential moving average of the student (what is evaluated and
    exported), or None, kept as the live weights are: on the device, in this worker's share; the
    live weights are the policy. ``dealing``: how the group shares out a round's blocks;
    ``sharded``: its workers hold parts of one model (FSDP2) and wait for each other at every
    forward.
    """

    editor: Editor
    adapters: Adapters
    store: TensorStore
    manifest: Manifest
    plan: PlanSettings
    settings: UpdateSettings
    all_reduce: AllReduce
    average: dict[str, Tensor] | None = field(default=None)
    dealing: Dealing = field(default_factory=Dealing)
    sharded: bool = False

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
        """One round on a worker that owns one logical rank: see :meth:`update_hand`."""
        return self.update_hand([rollout], round_index, [rank])

    def update_hand(
        self, rollouts: Sequence[Rollout], round_index: int, ranks: Sequence[int]
    ) -> dict[str, float]:
        """One round on one worker, of the blocks that it owns; returns the means of their metrics.

        Each step's gradient is accumulated over the blocks, then averaged over the group: it is the
        mean over all logical ranks, whoever owns them.

        Raises:
            ValueError: a rollout is of another round or rank.
        """
        self.counter.take()
        device = self.editor.device
        hand = [
            Block.load(self.plan, self.manifest, self.store, rollout, (round_index, rank), device)
            for rollout, rank in zip(rollouts, ranks, strict=True)
        ]
        metrics = self._update_fake(hand, round_index)
        metrics |= self._update_student(hand, round_index)
        metrics["forwards_student_group"] = self.counter.take() / (
            self.plan.batch * len(self._turns(hand))
        )
        return metrics

    def _turns(self, hand: list[Block]) -> list[tuple[Block, float]]:
        """Blocks and their weights in the step's loss.

        A worker of a sharded group that owns fewer than another repeats its last for nothing: each
        forward of one is a forward of all.
        """
        short = self.dealing.most - len(hand) if self.sharded else 0
        return [(block, self.dealing.weight) for block in hand] + [(hand[-1], 0.0)] * short

    def _parts(self) -> list[list[int]]:
        """The slots of each forward; as many in every block, for a sharded group waits at each."""
        count, most = self.plan.batch, self.settings.micro_batch or self.plan.batch
        return [list(range(i, min(i + most, count))) for i in range(0, count, most)]

    def _update_fake(self, hand: list[Block], round_index: int) -> dict[str, float]:
        rate = rate_at(self.settings.fake_rate, round_index, self.settings.rounds)
        losses, norm = [], 0.0
        sigmas: list[float] = []
        errors: list[Tensor] = []

        def part_losses(update: int) -> Iterator[WeightedLoss]:
            for block, weight in self._turns(hand):
                for rows in self._parts():
                    x0 = _tensor(block.rollout.fake_x0[rows, update], self.editor.device)
                    times = [block.slots[i].fake_ts[update] for i in rows]
                    t = as_sigma(times, self.editor.device)
                    noise = block.seeds.gaussian("fake", rows, update)
                    with self.adapters.use(FAKE):
                        given = block.conditions.rows(rows)
                        v = self.editor.velocity(add_noise(x0, noise, t), t, given)
                    each = flow_matching_loss(v, x0, noise)
                    if weight > 0:
                        sigmas.extend(times)
                        errors.append(each.detach())
                    yield each.sum() / len(block.slots), weight

        for update in range(self.plan.fake_updates):
            loss, norm = self._step(FAKE, self.fake_optimizer, part_losses(update), rate)
            losses.append(loss / len(hand))
        return {
            "loss_fake": sum(losses) / len(losses),
            "grad_norm_fake": norm,
            "learning_rate_fake": rate,
        } | by_sigma("loss_fake", sigmas, torch.cat(errors))

    def _update_student(self, hand: list[Block], round_index: int) -> dict[str, float]:
        rate = rate_at(self.settings.student_rate, round_index, self.settings.rounds)
        parts = self._parts()
        metrics: dict[str, float] = {}
        effects: list[str | None] = []
        gaps: list[Tensor] = []

        def part_losses() -> Iterator[WeightedLoss]:
            for block, weight in self._turns(hand):
                anchors = None
                if self.settings.weight_ta > 0:
                    anchors = Anchors.of(block, self.plan, self.manifest, self.store)
                for index, rows in enumerate(parts):
                    own = None if anchors is None else anchors.part(index, len(parts))
                    loss, found, gap = self._student_loss(block, rows, own)
                    if weight > 0:
                        gaps.append(gap)
                        for name, value in found.items():
                            metrics[name] = metrics.get(name, 0.0) + value / len(hand)
                    yield loss, weight

        _, norm = self._step(STUDENT, self.student_optimizer, part_losses(), rate)
        self._follow()
        entries = self.manifest.effects
        for block in hand:
            effects += [None if s.effect is None else entries[s.effect].name for s in block.slots]
        round_metrics = {
            "effect_share": sum(effect is not None for effect in effects) / len(effects),
            "grad_norm_student": norm,
            "learning_rate_student": rate,
        }
        return round_metrics | metrics | by_stream("teacher_fake_gap", effects, torch.cat(gaps))

    def _student_loss(
        self, block: Block, slot_rows: list[int], anchors: Anchors | None
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        """The share of some slots and some anchors in the block's loss, and in its metrics.

        Last, how far teacher and fake score are apart, by slot ``[B]``.
        """
        device, settings, slots = self.editor.device, self.settings, block.slots
        count, total, seeds, rollout = len(slot_rows), len(slots), block.seeds, block.rollout
        sigmas = student_sigmas(self.plan.student_steps, self.plan.shift)
        effects = [i for i in slot_rows if i in block.batch.effect_rows]
        rows = effects if settings.weight_ts > 0 else []
        conditions = block.conditions.rows(slot_rows)
        simulated = block.conditions.rows(rows) if rows else None
        x_g = _tensor(rollout.x_g[slot_rows], device)
        ts_x0 = _tensor(rollout.ts_x0[rows], device)

        # The fake score's opinion, at the very points where the teacher gave its own.
        t_score = as_sigma([slots[i].t for i in slot_rows], device)
        t_critic = as_sigma([slots[i].ts_t for i in rows], device)
        asked = torch.cat(
            [
                add_noise(x_g, seeds.gaussian("score", slot_rows), t_score),
                add_noise(ts_x0, seeds.gaussian("ts_critic", rows), t_critic),
            ]
        )
        t_asked = torch.cat([t_score, t_critic])
        with torch.no_grad(), self.adapters.use(FAKE):
            v = self.editor.velocity(asked, t_asked, _joined(conditions, simulated))
        fake_x0 = predict_x0(asked, v, t_asked)
        teacher = _tensor(rollout.teacher_x0[slot_rows], device)
        gradient_bs = dmd_gradient(x_g, fake_x0[:count], teacher)
        gradient_ts = dmd_gradient(
            ts_x0, fake_x0[count:], _tensor(rollout.ts_teacher_x0[rows], device)
        )

        # One student forward for all three losses, if the anchors are of the slots' bucket.
        t_k = as_sigma([sigmas[slots[i].step] for i in slot_rows], device)
        x_in, t_in = [_tensor(rollout.x_k[slot_rows], device)], [t_k]
        cond_in = [conditions]
        if simulated is not None:
            y = targets_of([block.batch.samples[i] for i in rows], self.store).to(device)
            t_in.append(as_sigma([sigmas[slots[i].ts_step] for i in rows], device))
            x_in.append(add_noise(y, seeds.gaussian("ts_gen", rows), t_in[-1]))
            cond_in.append(simulated)
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
        loss_bs = dmd_loss(x0[:count], gradient_bs).sum() / total
        loss_ts = dmd_loss(x0[count : count + len(rows)], gradient_ts).sum() / total
        loss_ta = x0.new_zeros(())
        if anchors is not None:
            each = flow_matching_loss(v_anchors, anchors.y, anchors.noise)
            if settings.scale_ta is not None:
                each = robust(each, settings.scale_ta)
            loss_ta = each.sum() * anchors.weight
        loss = (
            settings.weight_bs * loss_bs
            + settings.weight_ts * loss_ts
            + settings.weight_ta * loss_ta
        )
        share, simulations = count / total, max(1, len(block.batch.effect_rows))
        moved = (x0[:count].detach() - x_g).abs().mean()
        gap = (fake_x0[:count] - teacher).abs().mean(dim=(1, 2))
        return (
            loss,
            {
                "loss_dmd_bs": loss_bs.item(),
                "loss_dmd_ts": loss_ts.item(),
                "loss_ta_fm": loss_ta.item(),
                "dmd_gradient": gradient_bs.abs().mean().item() * share,
                "dmd_gradient_ts": (
                    gradient_ts.abs().mean().item() * len(rows) / simulations if rows else 0.0
                ),
                "teacher_fake_gap": gap.mean().item() * share,
                # 0 at lag 0: the student is still the one that made the rollout.
                "policy_moved": moved.item() * share,
            },
            gap,
        )

    def _step(
        self, name: str, optimizer: torch.optim.AdamW, losses: Iterable[WeightedLoss], rate: float
    ) -> tuple[float, float]:
        """Backward (a loss that comes in parts is their sum), average over the group, clip, step.

        Returns the loss, without the weights, and the gradient's norm.
        """
        for group in optimizer.param_groups:
            group["lr"] = rate
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        optimizer.zero_grad(set_to_none=True)
        total = 0.0
        for loss, weight in losses:
            with self.adapters.use(name):
                (loss * weight).backward()  # type: ignore[no-untyped-call]
            total += loss.item() if weight > 0 else 0.0
        # Nothing reads the prompt stream's end in the last block: no gradient there.
        self.all_reduce([p.grad for p in parameters if p.grad is not None])
        norm = nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip)
        optimizer.step()
        # The other adapter's update must not find these still on the card.
        optimizer.zero_grad(set_to_none=True)
        return total, whole(norm).item()

    @torch.no_grad()
    def _follow(self) -> None:
        if self.average is not None:
            for key, value in self.adapters.state(STUDENT).items():
                self.average[key].lerp_(value.detach(), 1 - self.settings.ema)


def _joined(*parts: Conditions | None) -> Conditions:
    present = [p for p in parts if p is not None]
    return present[0] if len(present) == 1 else concatenate(*present)


def _tensor(array: object, device: torch.device) -> Tensor:
    return torch.as_tensor(array, dtype=torch.float32).to(device)
