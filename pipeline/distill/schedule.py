"""Flow-matching notation and schedules (method.md, "Notation").

sigma = t in [0, 1]; ``x_t = (1 - t) x0 + t noise``; the network predicts ``v = noise - x0``;
``x0_hat = x_t - t v``. All tensors are ``[B, N, C]`` tokens and ``t`` is ``[B]``.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def shift_sigma(u: float, shift: float) -> float:
    """Static timestep shift ``shift * u / (1 + (shift - 1) * u)``; maps [0, 1] onto [0, 1]."""
    return shift * u / (1 + (shift - 1) * u)


def student_sigmas(steps: int, shift: float) -> list[float]:
    """The student's schedule, from 1 downwards: S values for ``u = 1, (S-1)/S, ..., 1/S``.

    S = 8, shift 3 gives 1, .9545, .9, .8333, .75, .6429, .5, .3.

    Raises:
        ValueError: ``steps`` is not positive.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, not {steps}")
    return [shift_sigma(u / steps, shift) for u in range(steps, 0, -1)]


def target_simulation_steps(steps: int, shift: float, tau_max: float) -> list[int]:
    """Indices of the student steps that target simulation may start from: ``t_gen < tau_max``.

    The bound is explicit (the published code takes the last five steps, letting .8333 in).
    """
    return [i for i, t in enumerate(student_sigmas(steps, shift)) if t < tau_max]


def sigma_above(u: float, tau_min: float, shift: float) -> float:
    """Where a sample is scored: shift-``shift`` uniform, held to (tau_min, 1).

    ``u`` in (0, 1) is mapped through the shift restricted to the range, so that the density
    above ``tau_min`` is that of the unbounded draw.
    """
    lowest = tau_min / (shift - (shift - 1) * tau_min)
    return shift_sigma(lowest + (1 - lowest) * u, shift)


def add_noise(x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """``x_t`` from clean ``x0`` and ``noise``, both ``[B, N, C]``, at ``t`` ``[B]``."""
    t = t[:, None, None]
    return (1 - t) * x0 + t * noise


def predict_x0(x_t: Tensor, velocity: Tensor, t: Tensor) -> Tensor:
    """``x0_hat = x_t - t v``."""
    return x_t - t[:, None, None] * velocity


def teacher_sigmas(steps: int, shift: float, terminal: float | None = None) -> list[float]:
    """The multi-step sampler's sigmas with the final 0, as stock diffusers sets them.

    ``linspace(1, 1/steps)`` through the shift, then 0: ``steps + 1`` values. ``terminal``: what
    the last one above 0 is stretched to.
    """
    sigmas = [shift_sigma(float(u), shift) for u in np.linspace(1.0, 1.0 / steps, steps)]
    if terminal:
        scale = (1 - terminal) / (1 - sigmas[-1])
        sigmas = [1 - (1 - sigma) * scale for sigma in sigmas]
    return [*sigmas, 0.0]


def scheduler_sigmas(config: Mapping[str, Any], steps: int, tokens: int) -> list[float]:
    """The sigmas of a ``FlowMatchEulerDiscreteScheduler`` config for pictures of ``tokens``.

    With dynamic shifting the shift grows with the picture: ``mu`` is linear in its tokens, and
    diffusers' exponential time shift by ``mu`` is the static one by ``exp(mu)``.
    """
    shift = float(config["shift"])
    if config.get("use_dynamic_shifting"):
        low, high = config["base_image_seq_len"], config["max_image_seq_len"]
        slope = (config["max_shift"] - config["base_shift"]) / (high - low)
        mu = config["base_shift"] + slope * (tokens - low)
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return teacher_sigmas(steps, shift, config.get("shift_terminal"))


def as_sigma(values: list[float], device: torch.device | None = None) -> Tensor:
    """A batch of sigmas ``[B]`` in fp32."""
    return torch.tensor(values, dtype=torch.float32, device=device)
