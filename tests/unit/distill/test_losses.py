"""The losses against closed forms for Gaussians and against slow loops."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from pipeline.distill.losses import (
    dmd_gradient,
    dmd_loss,
    flow_matching_loss,
    guided_x0,
    robust,
    tempered,
)
from pipeline.distill.schedule import add_noise, shift_sigma


def denoised(x_t: Tensor, t: float, mean: float, std: float) -> Tensor:
    """``E[x0 | x_t]`` where ``x0 ~ N(mean, std**2)``: Bayes' rule for two Gaussians."""
    precision_prior, precision_data = 1 / std**2, ((1 - t) / t) ** 2
    return (mean * precision_prior + x_t / (1 - t) * precision_data) / (
        precision_prior + precision_data
    )


def marginal(t: float, mean: float | Tensor, std: float) -> Normal:
    """The distribution of ``x_t``."""
    return Normal((1 - t) * torch.as_tensor(mean), math.sqrt((1 - t) ** 2 * std**2 + t**2))


def log_density_gradient(x_t: Tensor, t: float, mean: float, std: float) -> Tensor:
    x = x_t.clone().requires_grad_()
    marginal(t, mean, std).log_prob(x).sum().backward()
    assert x.grad is not None
    return x.grad


TEACHER, FAKE = (0.7, 0.5), (-0.4, 1.3)


@pytest.fixture(autouse=True)
def _doubles() -> object:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.5, 0.9, 0.99])
def test_the_gradient_is_that_of_the_kl_divergence(t: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x_g = torch.randn(4, 3, 5, generator=generator)
    noise = torch.randn(4, 3, 5, generator=generator)
    x_t = add_noise(x_g, noise, torch.full((4,), t))
    x0_fake, x0_teacher = denoised(x_t, t, *FAKE), denoised(x_t, t, *TEACHER)
    # grad_{x_t} log(p_fake / p_teacher): the gradient of KL(fake || teacher) at the sample.
    score_difference = log_density_gradient(x_t, t, *FAKE) - log_density_gradient(x_t, t, *TEACHER)
    assert torch.allclose((x0_fake - x0_teacher) * (1 - t) / t**2, score_difference, atol=1e-9)
    # The normaliser, sample by sample, in numpy.
    ours = dmd_gradient(x_g, x0_fake, x0_teacher).numpy()
    for b in range(4):
        total = 0.0
        for n in range(3):
            for c in range(5):
                total += abs(float(x_g[b, n, c]) - float(x0_teacher[b, n, c]))
        expected = score_difference[b].numpy() * t**2 / (1 - t) / (total / 15)
        np.testing.assert_allclose(ours[b], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("t", [0.2, 0.6, 0.95])
def test_its_expectation_is_the_closed_forms_derivative(t: float) -> None:
    mean = torch.tensor(FAKE[0], requires_grad=True)
    kl_divergence(marginal(t, mean, FAKE[1]), marginal(t, *TEACHER)).backward()
    assert mean.grad is not None
    # Pairs on both sides of the mean average a linear score difference exactly.
    half = torch.randn(500, generator=torch.Generator().manual_seed(1))
    x_t = marginal(t, *FAKE).mean + torch.cat([half, -half])
    difference = (denoised(x_t, t, *FAKE) - denoised(x_t, t, *TEACHER)) * (1 - t) / t**2
    # d x_t / d mean = 1 - t.
    assert float(difference.mean() * (1 - t)) == pytest.approx(float(mean.grad), rel=1e-9)


def test_samples_are_normalised_apart() -> None:
    x_g, fake, teacher = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(2))
    both = dmd_gradient(x_g, fake, teacher)
    far = dmd_gradient(
        torch.stack([x_g[0], x_g[1] + 100]),
        fake,
        teacher,
    )
    assert torch.equal(far[0], both[0])
    assert far[1].abs().max() < both[1].abs().max() / 10
    # No division by zero where the teacher agrees with the student exactly.
    assert torch.isfinite(dmd_gradient(teacher, fake, teacher)).all()


def test_the_surrogates_derivative_is_the_gradient() -> None:
    x_g, gradient = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(3))
    x_g.requires_grad_()
    loss = dmd_loss(x_g, gradient)
    assert torch.allclose(loss, 0.5 * gradient.square().mean(dim=(1, 2)))
    loss.sum().backward()
    assert x_g.grad is not None
    assert torch.allclose(x_g.grad, gradient / (4 * 5), atol=1e-12)


def test_flow_matching_against_loops() -> None:
    v, x0, noise = torch.randn(3, 2, 3, 4, generator=torch.Generator().manual_seed(4))
    ours = flow_matching_loss(v, x0, noise)
    for b in range(2):
        total = 0.0
        for n in range(3):
            for c in range(4):
                target = float(noise[b, n, c]) - float(x0[b, n, c])
                total += (float(v[b, n, c]) - target) ** 2
        assert float(ours[b]) == pytest.approx(total / 12, rel=1e-9)


@pytest.mark.parametrize(("loss", "share"), [(0.0, 1.0), (0.5, 0.25), (1.5, 1 / 16), (50.0, 1e-4)])
def test_a_robust_loss_lets_go_of_what_is_far(loss: float, share: float) -> None:
    given = torch.tensor([loss], dtype=torch.float64, requires_grad=True)
    robust(given, 0.5).sum().backward()
    assert given.grad is not None
    assert float(given.grad) == pytest.approx(share, rel=0.02)
    assert float(robust(given.detach(), 1e9)) == pytest.approx(loss)


@pytest.mark.parametrize(
    ("loss", "power", "share"), [(4.0, 0.5, 1 / 4), (4.0, 1.0, 1.0), (16.0, 0.25, 1 / 32)]
)
def test_a_tempered_loss_evens_what_samples_add(loss: float, power: float, share: float) -> None:
    given = torch.tensor([loss], dtype=torch.float64, requires_grad=True)
    tempered(given, power).sum().backward()
    assert given.grad is not None
    assert float(given.grad) == pytest.approx(share, rel=1e-3)


def test_a_tempered_loss_is_finite_at_nothing_and_by_samples_of_a_batch() -> None:
    given = torch.tensor([0.0, 0.25, 9.0], requires_grad=True)
    tempered(given, 0.5).sum().backward()
    assert given.grad is not None and bool(torch.isfinite(given.grad).all())
    alone = [float(tempered(given.detach()[i : i + 1], 0.5)) for i in range(3)]
    assert tempered(given.detach(), 0.5).tolist() == pytest.approx(alone)


def test_guidance_in_the_papers_form() -> None:
    cond, uncond = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(5))
    assert torch.allclose(guided_x0(cond, uncond, 5.0), cond + 4 * (cond - uncond))
    assert torch.allclose(guided_x0(cond, uncond, 1.0), cond)


@pytest.mark.parametrize("start", [-3.0, 4.0])
def test_descent_with_exact_scores_finds_the_teachers_mean(start: float) -> None:
    generator = torch.Generator().manual_seed(6)
    goal, std = TEACHER
    theta = torch.tensor(start, requires_grad=True)
    for step in range(400):
        x_g = theta + std * torch.randn(32, 1, 1, generator=generator)
        t = shift_sigma(float(torch.rand((), generator=generator)) * 0.96 + 0.02, 3.0)
        noise = torch.randn(32, 1, 1, generator=generator)
        with torch.no_grad():
            x_t = add_noise(x_g, noise, torch.full((32,), t))
            fake = denoised(x_t, t, float(theta), std)
            gradient = dmd_gradient(x_g, fake, denoised(x_t, t, goal, std))
        theta.grad = None
        dmd_loss(x_g, gradient).mean().backward()
        with torch.no_grad():
            assert theta.grad is not None
            # The normalised gradient does not shrink near the goal; the rate must.
            theta -= 0.3 * 0.985**step * theta.grad
    assert float(theta.detach()) == pytest.approx(goal, abs=0.05)
