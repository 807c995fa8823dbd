"""Teach one effect: a LoRA on the frozen base, by flow matching on its pairs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.distill.losses import flow_matching_loss, tempered
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
    loss_power: in (0, 1], see ``losses.tempered``.
    """

    steps: int
    batch: int
    learning_rate: float
    cosine: bool
    ema: float
    seed: int
    optimizer: Optimizer = "adamw"
    loss_power: float = 1.0


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
    """A batch of one bucket: targets y and noise ``[B, N, C]``, noised to sigma t ``[B]``."""

    x: Tensor
    t: Tensor
    given: Conditions
    y: Tensor
    noise: Tensor


def teach(
    editor: Editor,
    adapters: Adapters,
    buckets: Sequence[Pairs],
    plan: TeachPlan,
    on_step: Callable[[int, float], None] | None = None,
    known: Sequence[Pairs] = (),
) -> dict[str, Tensor]:
    """Train the adapter named ``teacher`` and return its weights (``Adapters.state`` keys).

    Each step's batch is of one bucket, drawn by its share of the pairs. The null conditions are
    shown one time in ten, so that guidance has something to lean on. Half of the sigmas are drawn
    at shift 3, half uniformly: an effect is decided at the noisy end and finished at the other.

    known: what the adapter is to keep while it learns the pairs. On as large a batch of these it
    is held to the velocity of the frozen adapter named ``start`` (learning without forgetting, Li
    & Hoiem 2016): regression on their targets would undo what distribution matching made of it.
    """
    adapters.train_only(TEACHER)
    parameters = adapters.parameters(TEACHER)
    kind = torch.optim.Muon if plan.optimizer == "muon" else torch.optim.AdamW
    optimizer = kind(parameters, lr=plan.learning_rate, weight_decay=0.0)
    average = {k: v.detach().clone() for k, v in adapters.state(TEACHER).items()}
    for step in range(plan.steps):
        optimizer.zero_grad(set_to_none=True)
        new = _noised(buckets, plan, "teach", step, editor.device)
        with adapters.use(TEACHER):
            v = editor.velocity(new.x, new.t, new.given)
            loss = flow_matching_loss(v, new.y, new.noise)
            tempered(loss, plan.loss_power).mean().backward()  # type: ignore[no-untyped-call]
        if known:
            old = _noised(known, plan, "rehearse", step, editor.device)
            with torch.no_grad(), adapters.use(START):
                kept = editor.velocity(old.x, old.t, old.given)
            with adapters.use(TEACHER):
                strayed = F.mse_loss(editor.velocity(old.x, old.t, old.given), kept)
                strayed.backward()  # type: ignore[no-untyped-call]
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * _share(plan, step)
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()  # type: ignore[no-untyped-call]
        decay = min(plan.ema, (step + 1) / (step + 10))
        with torch.no_grad():
            for key, value in adapters.state(TEACHER).items():
                average[key].lerp_(value, 1 - decay)
        if on_step is not None:
            on_step(step, loss.mean().item())
    return average


def _noised(
    buckets: Sequence[Pairs], plan: TeachPlan, purpose: str, step: int, device: torch.device
) -> Noised:
    """A step's batch, a function of (seed, purpose, step)."""
    shares = np.array([len(b.targets) for b in buckets], dtype=np.float64)
    shares /= shares.sum()
    drawn = generator(plan.seed, f"{purpose} bucket", step).choice(len(buckets), p=shares)
    pairs = buckets[int(drawn)]
    rng = generator(plan.seed, purpose, step)
    rows = rng.integers(0, len(pairs.targets), plan.batch).tolist()
    shifts = [3.0 if i % 2 == 0 else 1.0 for i in range(plan.batch)]
    t = as_sigma([shift_sigma(float(rng.random()), s) for s in shifts], device)
    given = pairs.null if rng.random() < 0.1 else pairs.conditions
    y = pairs.targets[rows].to(device)
    keys = [(plan.seed, purpose, step, i) for i in range(plan.batch)]
    noise = gaussian_batch(y.shape[1:], keys).to(device)
    return Noised(add_noise(y, noise, t), t, given.rows(rows).to(device), y, noise)


def _share(plan: TeachPlan, step: int) -> float:
    warm = min(1.0, (step + 1) / 20)
    return warm * (0.5 * (1 + math.cos(math.pi * step / plan.steps)) if plan.cosine else 1.0)
