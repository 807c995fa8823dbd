"""What the student group's half of a round is made of: blocks, their noise, and anchors."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pipeline.distill.batches import SlotBatch, anchor_samples, conditions_of, targets_of
from pipeline.distill.noise import gaussian_batch
from pipeline.distill.schedule import as_sigma
from pipeline.models.editor import Conditions
from pipeline.plan import PlanSettings, Slot, round_anchors, round_slots
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest, Rollout


@dataclass(frozen=True)
class Seeds:
    """The noise of one block; purposes shared with the rollout give the same numbers there."""

    seed: int
    round: int
    rank: int
    shape: tuple[int, int]
    device: torch.device

    def gaussian(self, purpose: str, rows: Sequence[int], index: int = 0) -> Tensor:
        """Of some slots, ``[rows, N, C]``."""
        if not rows:
            return torch.zeros(0, *self.shape, device=self.device)
        keys = [(self.seed, purpose, self.round, self.rank, i, index) for i in rows]
        return gaussian_batch(self.shape, keys).to(self.device)


@dataclass(frozen=True)
class Block:
    """One (round, logical rank): its slots with their data, and its rollout."""

    slots: list[Slot]
    batch: SlotBatch
    rollout: Rollout
    conditions: Conditions
    seeds: Seeds

    @classmethod
    def load(
        cls,
        plan: PlanSettings,
        manifest: Manifest,
        store: TensorStore,
        rollout: Rollout,
        place: tuple[int, int],
        device: torch.device,
    ) -> "Block":
        """``place``: which round and logical rank it is to be.

        Raises:
            ValueError: the rollout is of another round or rank.
        """
        round_index, rank = place
        if set(rollout.round.tolist()) != {round_index} or set(rollout.rank.tolist()) != {rank}:
            raise ValueError(
                f"round {round_index}, rank {rank} got the rollout of round "
                f"{rollout.round.tolist()}, rank {rollout.rank.tolist()}"
            )
        slots = round_slots(plan, round_index, rank)
        batch = SlotBatch.load(slots, manifest, store)
        return cls(
            slots=slots,
            batch=batch,
            rollout=rollout,
            conditions=conditions_of(batch.samples, "student", store).to(device),
            seeds=Seeds(plan.seed, round_index, rank, batch.token_shape, device),
        )


@dataclass(frozen=True)
class Anchors:
    """TA-FM's samples of a block; ``weight``: of one of them in the block's loss."""

    y: Tensor
    noise: Tensor
    t: Tensor
    conditions: Conditions
    weight: float

    @classmethod
    def of(
        cls, block: Block, plan: PlanSettings, manifest: Manifest, store: TensorStore
    ) -> "Anchors | None":
        """Its own batch where the recipe has one, else the effect slots'; None if that is empty."""
        seeds, batch = block.seeds, block.batch
        if plan.ta_fm_batch > 0:
            drawn = round_anchors(plan, seeds.round, seeds.rank)
            samples = anchor_samples(drawn, manifest)
            times = [a.t for a in drawn]
            # The weight is per effect slot, as in the paper, whatever the batch.
            share = plan.p_switch
        else:
            samples = [batch.samples[i] for i in batch.effect_rows]
            times = [block.slots[i].t for i in batch.effect_rows]
            share = len(samples) / len(block.slots)
        if not samples:
            return None
        y, rows = targets_of(samples, store).to(seeds.device), range(len(samples))
        return cls(
            y=y,
            noise=replace(seeds, shape=(y.shape[1], y.shape[2])).gaussian("anchor", rows),
            t=as_sigma(times, seeds.device),
            conditions=conditions_of(samples, "student", store).to(seeds.device),
            weight=share / len(samples),
        )

    def part(self, index: int, parts: int) -> "Anchors | None":
        """Those of one of so many parts of a block; None if there are too few for all."""
        count = len(self.t)
        rows = list(range(count * index // parts, count * (index + 1) // parts))
        if not rows:
            return None
        given = self.conditions.rows(rows)
        return Anchors(self.y[rows], self.noise[rows], self.t[rows], given, self.weight)
