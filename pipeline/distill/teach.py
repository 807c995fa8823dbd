"""Teach a LoRA on the frozen base: by flow matching on pairs, or after other LoRAs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distill.halfway import Halfway
from pipeline.distill.losses import tempered
from pipeline.distill.noise import gaussian_batch, generator
from pipeline.distill.schedule import add_noise, as_sigma, shift_sigma
from pipeline.models.adapters import Adapters
from pipeline.models.editor import Conditions, Editor

TEACHER = "teacher"
START = "start"
Optimizer = Literal["adamw", "muon"]


@dataclass(frozen=True)
class TeachPlan:
    """Steps, batch and rate of one teacher's training; ``ema`` 0 keeps the last weights.

    optimizer: ``muon`` (Jordan 2024) moves each LoRA matrix by an orthogonalised momentum.
    loss_power: in (0, 1], see ``losses.tempered``; general: rows of the general stream a step.
    """

    steps: int
    batch: int
    learning_rate: float
    cosine: bool
    ema: float
    seed: int
    optimizer: Optimizer = "adamw"
    loss_power: float = 1.0
    general: int = 0


@dataclass(frozen=True)
class Pairs:
    """An effect's P pairs of one bucket.

    conditions: one a pair, under the teacher prompt; null: the same pictures under the empty
    prompt; targets ``[P, N, C]``: the edited pictures' latent tokens.
    """

    conditions: Conditions
    null: Conditions
    targets: Tensor


@dataclass(frozen=True)
class Noised:
    """A batch of one bucket: targets y and noise ``[B, N, C]``, noised to sigma t ``[B]``.

    bucket, rows: which pairs they are.
    """

    x: Tensor
    t: Tensor
    given: Conditions
    y: Tensor
    noise: Tensor
    bucket: int
    rows: list[int]


@dataclass(frozen=True)
class Kept:
    """Pairs on which the adapter that is taught is held to what a frozen one says.

    adapter: its name; batch: pairs a step, each of which weighs as much as one that is learned.
    """

    name: str
    pairs: Sequence[Pairs]
    adapter: str
    batch: int


# The velocity ``[B, N, C]`` that a batch is to have.
Wanted = Callable[[Noised], Tensor]


def straight(batch: Noised) -> Tensor:
    """``noise - y``: flow matching (Lipman et al. 2023). Its mean over all y is what is learned."""
    return batch.noise - batch.y


def teach(
    editor: Editor,
    adapters: Adapters,
    buckets: Sequence[Pairs],
    plan: TeachPlan,
    on_step: Callable[[int, float], None] | None = None,
    kept: Sequence[Kept] = (),
    wanted: Wanted = straight,
    halfway: Halfway | None = None,
) -> dict[str, Tensor]:
    """Train the adapter named ``teacher`` and return its weights (``Adapters.state`` keys).

    Each step's batch is of one bucket, drawn by its share of the pairs. The null conditions are
    shown one time in ten, so that guidance has something to lean on. Half of the sigmas are drawn
    at shift 3, half uniformly: an effect is decided at the noisy end and finished at the other.

    kept: what the adapter is not to lose while it learns the pairs (learning without forgetting, Li
    & Hoiem 2016): regression on targets would undo what distribution matching made of it.

    wanted: what a batch's velocity is held to, without gradients.

    halfway: where it writes now and then how far it is, and goes on from after a stop.
    """
    adapters.train_only(TEACHER)
    parameters = adapters.parameters(TEACHER)
    kind = torch.optim.Muon if plan.optimizer == "muon" else torch.optim.AdamW
    optimizer = kind(parameters, lr=plan.learning_rate, weight_decay=0.0)
    weights = adapters.state(TEACHER)
    average = {k: v.detach().clone() for k, v in weights.items()}
    begun = 0
    if halfway is not None:
        begun = halfway.read(optimizer, weights=weights, average=average)
    for step in range(begun, plan.steps):
        optimizer.zero_grad(set_to_none=True)
        new = _noised(buckets, plan, "teach", step, editor.device, plan.batch)
        goal = wanted(new)
        with adapters.use(TEACHER):
            v = editor.velocity(new.x, new.t, new.given)
            loss = F.mse_loss(v, goal, reduction="none").mean(dim=(1, 2))
            tempered(loss, plan.loss_power).mean().backward()  # type: ignore[no-untyped-call]
        for part in kept:
            old = _noised(part.pairs, plan, part.name, step, editor.device, part.batch)
            with torch.no_grad(), adapters.use(part.adapter):
                before = editor.velocity(old.x, old.t, old.given)
            with adapters.use(TEACHER):
                now = editor.velocity(old.x, old.t, old.given)
                strayed = F.mse_loss(now, before, reduction="none").mean(dim=(1, 2))
                weighed = tempered(strayed, plan.loss_power).mean() * (part.batch / plan.batch)
                weighed.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * _share(plan, step)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()  # type: ignore[no-untyped-call]
        decay = min(plan.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in weights.items():
                average[key].lerp_(value, 1 - decay)
        if halfway is not None and step + 1 < plan.steps:
            halfway.write(step + 1, optimizer, weights=weights, average=average)
        if on_step is not None:
            on_step(step, loss.mean().item())
    return average


def _noised(
    buckets: Sequence[Pairs],
    plan: TeachPlan,
    purpose: str,
    step: int,
    device: torch.device,
    batch: int,
) -> Noised:
    """A step's batch, a function of (seed, purpose, step)."""
    shares = np.array([len(b.targets) for b in buckets], dtype=np.float64)
    shares /= shares.sum()
    drawn = generator(plan.seed, f"{purpose} bucket", step).choice(len(buckets), p=shares)
    bucket = int(drawn)
    pairs = buckets[bucket]
    rng = generator(plan.seed, purpose, step)
    rows = rng.integers(0, len(pairs.targets), batch).tolist()
    shifts = [3.0 if i % 2 == 0 else 1.0 for i in range(batch)]
    t = as_sigma([shift_sigma(float(rng.random()), s) for s in shifts], device)
    given = pairs.null if rng.random() < 0.1 else pairs.conditions
    y = pairs.targets[rows].to(device)
    keys = [(plan.seed, purpose, step, i) for i in range(batch)]
    noise = gaussian_batch(y.shape[1:], keys).to(device)
    x, here = add_noise(y, noise, t), given.rows(rows).to(device)
    return Noised(x, t, here, y, noise, bucket, rows)


def _share(plan: TeachPlan, step: int) -> float:
    warm = min(1.0, (step + 1) / 20)
    return warm * (0.5 * (1 + math.cos(math.pi * step / plan.steps)) if plan.cosine else 1.0)
