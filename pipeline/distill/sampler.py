"""Samplers as plain functions of a ``velocity(x_t, t) -> v`` callable."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.distill.losses import guided_x0
from pipeline.distill.schedule import (
    add_noise,
    as_sigma,
    predict_x0,
    scheduler_sigmas,
    student_sigmas,
)
from pipeline.models.editor import Conditions, Editor, concatenate

Velocity = Callable[[Tensor, Tensor], Tensor]
# Fresh noise ``[B, N, C]`` for the re-noising before step k >= 1.
StepNoise = Callable[[int], Tensor]


def euler_sample(velocity: Velocity, noise: Tensor, sigmas: Sequence[float]) -> Tensor:
    """The multi-step ODE sampler, ``[B, N, C]`` noise to x0.

    Equals ``FlowMatchEulerDiscreteScheduler`` step by step; ``sigmas`` ends in 0.
    """
    x = noise
    for now, after in pairwise(sigmas):
        x = x + (after - now) * velocity(x, as_sigma([now] * len(x), x.device))
    return x


def student_trajectory(
    velocity: Velocity, noise: Tensor, step_noise: StepNoise, sigmas: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """The student's whole consistency-style trajectory (paper: backward simulation).

    At each step predict x0_hat, re-noise it with fresh noise to the next sigma. Returns the
    inputs x_k and predictions x0_hat_k of every step, each ``[S, B, N, C]``: any step is a
    valid generation ``x_g``, so one trajectory serves a round's student slot and all its
    fake-score slots. Equals diffusers' ``stochastic_sampling``.
    """
    inputs: list[Tensor] = []
    predictions: list[Tensor] = []
    x = noise
    for k, sigma in enumerate(sigmas):
        t = as_sigma([sigma] * len(x), x.device)
        if k > 0:
            x = add_noise(predictions[-1], step_noise(k), t)
        inputs.append(x)
        predictions.append(predict_x0(x, velocity(x, t), t))
    return torch.stack(inputs), torch.stack(predictions)


def guided_velocity(
    velocity_pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    scale: float,
    keep_norm: bool = False,
) -> Velocity:
    """CFG over ``(x, t) -> (cond, uncond)``: linear in v as in x0.

    keep_norm: bring each token back to the length of its conditional prediction, as the stock
    Qwen pipelines do.
    """

    return lambda x, t: guided(*velocity_pair(x, t), scale, keep_norm)


def guided(cond: Tensor, uncond: Tensor, scale: float, keep_norm: bool) -> Tensor:
    """CFG of two velocities ``[B, N, C]``; see :func:`guided_velocity`."""
    v = guided_x0(cond, uncond, scale)
    if not keep_norm:
        return v
    lengths: Tensor = cond.norm(dim=-1, keepdim=True) / v.norm(dim=-1, keepdim=True)
    return v * lengths


@torch.no_grad()
def sample_teacher(
    editor: Editor,
    conditions: Conditions,
    null: Conditions | None,
    noise: Tensor,
    steps: int,
    guidance: float = 1.0,
    keep_norm: bool = False,
) -> Tensor:
    """The stock pipeline's multi-step edit, ``[B, N, C]`` noise to x0.

    With ``null`` conditions each step is one forward of the conditional rows, then of the null
    rows, so that two adapter names a sample are to be selected; without, there is no guidance.
    """
    sigmas = scheduler_sigmas(editor.scheduler.config, steps, noise.shape[1])
    if null is None:
        return euler_sample(lambda x, t: editor.velocity(x, t, conditions), noise, sigmas)
    both = concatenate(conditions, null)

    def pair(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        v = editor.velocity(torch.cat([x, x]), torch.cat([t, t]), both)
        cond, uncond = v.chunk(2)
        return cond, uncond

    return euler_sample(guided_velocity(pair, guidance, keep_norm), noise, sigmas)


@torch.no_grad()
def sample_student(
    editor: Editor,
    conditions: Conditions,
    noise: Tensor,
    step_noise: StepNoise,
    steps: int,
    shift: float,
) -> Tensor:
    """The student's few-step edit, ``[B, N, C]`` noise to x0: its last prediction."""
    sigmas = student_sigmas(steps, shift)
    _, predictions = student_trajectory(
        lambda x, t: editor.velocity(x, t, conditions), noise, step_noise, sigmas
    )
    return predictions[-1]
