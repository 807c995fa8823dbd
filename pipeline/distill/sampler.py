"""Samplers as plain functions of a ``velocity(x_t, t) -> v`` callable."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.distill.losses import guided_x0
from pipeline.distill.schedule import add_noise, as_sigma, predict_x0

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
    velocity_pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], scale: float
) -> Velocity:
    """CFG over ``(x, t) -> (cond, uncond)``: linear in v as in x0, no norm correction."""

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        cond, uncond = velocity_pair(x, t)
        return guided_x0(cond, uncond, scale)

    return velocity
