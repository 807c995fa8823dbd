"""The losses, as pure functions of predictions (paper section 3.4; DMD: Yin et al. 2024)."""

import torch.nn.functional as F
from torch import Tensor


def dmd_gradient(x_g: Tensor, x0_fake: Tensor, x0_teacher: Tensor) -> Tensor:
    """The normalised distribution-matching gradient at the student's sample.

    ``(x0_fake - x0_teacher) / mean|x_g - x0_teacher|``, the mean over each sample's own tokens
    and channels. All ``[B, N, C]``; the scores were taken at the same noised ``x_t`` of x_g.

    In x0 space the difference of two denoisers is ``t**2 / (1 - t)`` times the difference of
    the scores, so its direction is that of ``grad KL(student || teacher)``.
    """
    normaliser = (x_g - x0_teacher).abs().mean(dim=(1, 2), keepdim=True)
    return (x0_fake - x0_teacher) / normaliser.clamp_min(1e-6)


def dmd_loss(x_g: Tensor, gradient: Tensor) -> Tensor:
    """The surrogate ``0.5 * mse(x_g, stopgrad(x_g - gradient))``, per sample ``[B]``.

    Its gradient with respect to ``x_g`` is ``gradient / (N * C)``.
    """
    target = (x_g - gradient).detach()
    return 0.5 * F.mse_loss(x_g, target, reduction="none").mean(dim=(1, 2))


def flow_matching_loss(velocity: Tensor, x0: Tensor, noise: Tensor) -> Tensor:
    """``mse(v, noise - x0)`` per sample ``[B]``: the fake score's loss, and TA-FM's."""
    return F.mse_loss(velocity, noise - x0, reduction="none").mean(dim=(1, 2))


def robust(loss: Tensor, scale: float) -> Tensor:
    """``scale * loss / (scale + loss)`` of each sample ``[B]`` (Geman & McClure 1985).

    loss: mean squared errors >= 0; scale > 0, in the same units (squared velocity). In [0, scale).

    A sample's gradient is ``(scale / (scale + loss))**2`` of the plain one: all of it where the
    loss is far below ``scale``, a quarter at ``scale``, next to nothing far above. An outcome by
    chance has a large flow matching loss whatever one learns; it would be pulled to its mean.
    """
    return scale * loss / (scale + loss)


def tempered(loss: Tensor, power: float) -> Tensor:
    """``loss**power`` of each sample ``[B]``; 1 is the loss itself, 1/2 pseudo-Huber's.

    loss: mean squared errors >= 0, in squared velocity; power in (0, 1].

    A sample's gradient is ``power * loss**(power - 1)`` of the plain one, which evens what samples
    whose outcome is uncertain and those whose outcome is certain add to a step: at 1/2 all pull
    alike (Song & Dhariwal 2023, section 3.3, for another reason); towards 0 each is weighted by
    its inverse variance, as in generalised least squares. Below ``1e-3``, what an effect learned
    to the last has left, the weight grows no more.
    """
    return (loss + 1e-3) ** power if power < 1 else loss


def guided_x0(cond: Tensor, uncond: Tensor, scale: float) -> Tensor:
    """Classifier-free guidance in x0 space; ``scale`` in the usual convention (1 is none).

    The paper's ``cond + 4 (cond - uncond)`` is scale 5.
    """
    return uncond + scale * (cond - uncond)
