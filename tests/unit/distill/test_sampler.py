"""Our samplers against diffusers' own scheduler, step by step."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_shift
from torch import Tensor

from pipeline.distill.sampler import euler_sample, guided_velocity, student_trajectory
from pipeline.distill.schedule import scheduler_sigmas, student_sigmas, teacher_sigmas

SHAPE = (2, 3, 4)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """A toy model, nonlinear in both."""
    return torch.tanh(1.7 * x) * (0.3 + t[:, None, None]) - 0.4 * x.flip(1)


def scheduler(steps: int, stochastic: bool) -> FlowMatchEulerDiscreteScheduler:
    made = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic)
    # As QwenImageEditPlusPipeline calls it.
    made.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=0.7)
    made.set_begin_index(0)
    return made


def stock_steps(steps: int, noise: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    """The state before the first step and after each."""
    stock = scheduler(steps, generator is not None)
    states = [noise]
    for t in stock.timesteps:
        v = velocity(states[-1], (t / 1000).expand(len(noise)))
        (x,) = stock.step(v, t, states[-1], generator=generator, return_dict=False)
        states.append(x)
    return states


@pytest.mark.parametrize("steps", [1, 4, 8, 40])
def test_sigmas_are_the_stock_schedulers(steps: int) -> None:
    stock = scheduler(steps, False).sigmas.tolist()
    assert teacher_sigmas(steps, 3.0) == pytest.approx(stock, abs=1e-6)
    assert student_sigmas(steps, 3.0) == pytest.approx(stock[:-1], abs=1e-6)


@pytest.mark.parametrize("steps", [1, 20])
def test_euler_equals_the_stock_scheduler_step_by_step(steps: int) -> None:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    stock = stock_steps(steps, noise, None)
    seen: list[Tensor] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x)
        return velocity(x, t)

    seen.append(euler_sample(watched, noise, teacher_sigmas(steps, 3.0)))
    assert len(seen) == steps + 1
    for ours, theirs in zip(seen, stock, strict=True):
        assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_the_student_equals_stochastic_sampling_step_by_step(steps: int) -> None:
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    stock = stock_steps(steps, noise, torch.Generator().manual_seed(7))
    # The scheduler draws after each step, the last included; ours asks before steps 1, 2, ...
    source = torch.Generator().manual_seed(7)
    draws = [torch.randn(SHAPE, generator=source) for _ in range(steps)]
    inputs, predictions = student_trajectory(
        velocity, noise, lambda k: draws[k - 1], student_sigmas(steps, 3.0)
    )
    assert inputs.shape == predictions.shape == (steps, *SHAPE)
    for k in range(steps):
        assert (inputs[k] - stock[k]).abs().max() < 1e-5
    assert (predictions[-1] - stock[-1]).abs().max() < 1e-5


def test_guided_velocity_combines_the_pair() -> None:
    x, t = torch.ones(1, 2, 3), torch.tensor([0.5])
    guided = guided_velocity(lambda x, t: (3 * x, x), 4.0)
    assert torch.equal(guided(x, t), torch.full((1, 2, 3), 9.0))


def test_guided_velocity_can_keep_the_conditional_length() -> None:
    cond = torch.tensor([[[3.0, 4.0]]])
    guided = guided_velocity(lambda x, t: (cond, torch.zeros_like(cond)), 7.0, keep_norm=True)
    x, t = torch.zeros_like(cond), torch.tensor([0.5])
    assert torch.allclose(guided(x, t), cond)


# As in the published folders: Qwen-Image-Edit's, and FLUX.1 Kontext's.
DYNAMIC = [
    {"shift": 1.0, "base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192}
    | {"shift_terminal": 0.02},
    {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15},
    {"shift": 3.0, "base_shift": 0.5, "max_shift": 1.15, "time_shift_type": "linear"},
]


@pytest.mark.parametrize("config", DYNAMIC)
@pytest.mark.parametrize("tokens", [256, 2688, 4096])
def test_dynamic_shifting_is_the_stock_pipelines(config: dict[str, Any], tokens: int) -> None:
    stock = FlowMatchEulerDiscreteScheduler(**config, use_dynamic_shifting=True)
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    mu = calculate_shift(tokens, *(stock.config[name] for name in names))
    stock.set_timesteps(sigmas=np.linspace(1.0, 1 / 20, 20), mu=mu)
    ours = scheduler_sigmas(stock.config, 20, tokens)
    assert ours == pytest.approx(stock.sigmas.tolist(), abs=1e-6)
    static = FlowMatchEulerDiscreteScheduler(shift=config["shift"])
    assert scheduler_sigmas(static.config, 20, tokens) == teacher_sigmas(20, config["shift"])
