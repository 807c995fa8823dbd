"""The miniature's autoencoder: diffusers' ``AutoencoderKLQwenImage`` at a small size.

Its encoder is solved for, not trained: its weights are set so that the latents are the leading
principal components of 8 x 8 px patches. (Trained from nothing for ten minutes, encoder and
decoder together stayed 2 dB behind those components decoded linearly.) The decoder is then
trained against fixed latents, so it can be trained longer without touching the transformer.
"""

import contextlib
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLQwenImage
from diffusers.models.autoencoders.autoencoder_kl_qwenimage import QwenImageCausalConv3d
from torch import Tensor

from pipeline.miniature.photographs import varied

LATENT_NOISE = 0.06
RATE = 0.05
WIDTH, CHANNELS = 12, 20


@contextlib.contextmanager
def single_frame_convolutions() -> Iterator[None]:
    """Run the causal 3-D convolutions as 2-D ones: the same numbers for one frame, 3 x faster.

    One frame sees only the last slice of each causal kernel, for the other slices fall on the
    zero padding of the past.
    """
    stock = QwenImageCausalConv3d.forward

    def forward(self: QwenImageCausalConv3d, x: Tensor, cache_x: Tensor | None = None) -> Tensor:
        if x.shape[2] != 1 or cache_x is not None:
            y: Tensor = stock(self, x, cache_x)
            return y
        left, _, top, *_ = self._padding
        frame = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], (top, left))
        return frame.unsqueeze(2)

    QwenImageCausalConv3d.forward = forward
    try:
        yield
    finally:
        QwenImageCausalConv3d.forward = stock


def new_autoencoder() -> AutoencoderKLQwenImage:
    """An untrained autoencoder: 8 x smaller sides, as the full-size one, 20 channels.

    Residual branches start at zero, so that the signal first learns to get through.
    """
    vae = AutoencoderKLQwenImage(
        base_dim=WIDTH,
        z_dim=CHANNELS,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=1,
        temperal_downsample=[False, False, False],
        latents_mean=[0.0] * CHANNELS,
        latents_std=[1.0] * CHANNELS,
    )
    for name, module in vae.named_modules():
        if name.endswith(("conv2", "proj")):
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    return vae


def solve_encoder(vae: AutoencoderKLQwenImage, size: int, pictures: int, seed: int) -> None:
    """Set the encoder's weights so that its latents are principal components of patches.

    Three stride-2 convolutions gather 2 x 2 neighbours, keeping the leading components at each
    level (12 of 12, 24 of 48, then the latents of 96). The final norm and SiLU are undone: a
    large constant channel makes the norm's divisor constant, and silu(x) - silu(-x) = x.
    """
    encoder = vae.encoder
    levels = [encoder.down_blocks[i].resample[1] for i in (1, 3, 5)]
    widths = [level.weight.shape[0] for level in levels]
    for module in (
        encoder.conv_in,
        encoder.down_blocks[2].conv_shortcut,
        encoder.down_blocks[4].conv_shortcut,
        vae.quant_conv,
    ):
        _embed(module)
    x = torch.cat([_batch(seed + 7, i, 50, size)[:, :, 0] for i in range(pictures // 50)])
    kept = [widths[0], widths[1], CHANNELS]
    for index, (level, keep) in enumerate(zip(levels, kept, strict=True)):
        cells = F.pixel_unshuffle(x, 2)
        rows = cells.permute(0, 2, 3, 1).flatten(0, 2).double()
        # Only the last level is centred: a bias before it would leak in at the border.
        mean = rows.mean(0) if index == 2 else torch.zeros(rows.shape[1], dtype=torch.double)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        components = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :keep].float()
        x = ((rows - mean).float() @ components).view(*_grid(cells), keep).permute(0, 3, 1, 2)
        torch.nn.init.zeros_(level.weight)
        torch.nn.init.zeros_(level.bias)
        kernel = components.T.view(keep, -1, 2, 2)
        with torch.no_grad():
            level.weight[:keep, : kernel.shape[1], :2, :2] = kernel
            if index == 2:
                level.bias[:keep] = -(mean.float() @ components)
    std = x.std((0, 2, 3))
    last, big = levels[2], 30.0 * float(x.norm(dim=1).mean())
    with torch.no_grad():
        last.weight[CHANNELS : 2 * CHANNELS] = -last.weight[:CHANNELS]
        last.bias[CHANNELS : 2 * CHANNELS] = -last.bias[:CHANNELS]
        last.bias[2 * CHANNELS :] = big
        constants = widths[2] - 2 * CHANNELS
        # After the norm a component is x * gain; the gain leaves the SiLU unchanged in scale.
        gain = widths[2] ** 0.5 / (constants**0.5 * big)
        torch.nn.init.zeros_(encoder.conv_out.weight)
        torch.nn.init.zeros_(encoder.conv_out.bias)
        for i in range(CHANNELS):
            encoder.conv_out.weight[i, i, -1, 1, 1] = 1 / (gain * std[i])
            encoder.conv_out.weight[i, CHANNELS + i, -1, 1, 1] = -1 / (gain * std[i])
        encoder.conv_out.bias[CHANNELS:] = -20.0


def _embed(module: torch.nn.Conv3d) -> None:
    """Make a convolution copy its input channels to its first output channels."""
    assert module.bias is not None
    with torch.no_grad():
        module.weight.zero_()
        module.bias.zero_()
        middle = module.weight.shape[-1] // 2
        for i in range(module.weight.shape[1]):
            module.weight[i, i, -1, middle, middle] = 1.0


def _grid(cells: Tensor) -> tuple[int, int, int]:
    return cells.shape[0], cells.shape[2], cells.shape[3]


def _batch(seed: int, step: int, batch: int, size: int) -> Tensor:
    rngs = [np.random.default_rng([seed, step, i]) for i in range(batch)]
    pictures = np.stack([varied(size, rng) for rng in rngs])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).unsqueeze(2) * 2 - 1


class _Optimizer:
    """Muon for the kernels (as matrices), AdamW for the rest.

    In a few hundred steps of small batches Muon (Jordan 2024) came 4 dB nearer than AdamW at
    its best rate; torch's own takes matrices only, so each kernel has one beside it.
    """

    def __init__(self, parameters: Sequence[torch.nn.Parameter], rate: float) -> None:
        self.kernels = [p for p in parameters if p.ndim >= 4]
        self.matrices = [torch.nn.Parameter(self._used(p).flatten(1).clone()) for p in self.kernels]
        others = [p for p in parameters if p.ndim < 4]
        self.muon = torch.optim.Muon(self.matrices, lr=rate, weight_decay=0.0)
        self.adam = torch.optim.AdamW(others, lr=2e-3, betas=(0.9, 0.98))
        self.rates = [(g, g["lr"]) for o in (self.muon, self.adam) for g in o.param_groups]

    @staticmethod
    def _used(kernel: Tensor) -> Tensor:
        """The slice that a single frame sees: the present."""
        return kernel[:, :, -1] if kernel.ndim == 5 else kernel

    def step(self, share: float) -> None:
        """One update at ``share`` of the peak rates."""
        for group, rate in self.rates:
            group["lr"] = rate * share
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = None if kernel.grad is None else self._used(kernel.grad).flatten(1)
            kernel.grad = None
        self.muon.step()  # type: ignore[no-untyped-call]
        self.adam.step()
        self.adam.zero_grad()
        with torch.no_grad():
            for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
                self._used(kernel).copy_(matrix.view_as(self._used(kernel)))


def solved_autoencoder(size: int = 64, seed: int = 0) -> AutoencoderKLQwenImage:
    """An autoencoder with the solved encoder and an untrained decoder; latents have unit std."""
    torch.manual_seed(seed)
    vae = new_autoencoder()
    solve_encoder(vae, size, pictures=600, seed=seed)
    return vae.eval()


def train_decoder(
    vae: AutoencoderKLQwenImage, steps: int, size: int = 64, batch: int = 16, seed: int = 0
) -> float:
    """Train the decoder on varied pictures, in place; returns its PSNR (dB) on fresh ones."""
    parameters = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    optimizer = _Optimizer(parameters, RATE)
    noise = torch.Generator().manual_seed(seed)
    start = time.monotonic()
    with single_frame_convolutions():
        for step in range(steps):
            x = _batch(seed, step, batch, size)
            with torch.no_grad():
                z = vae.encode(x).latent_dist.mode()
            # The decoder must bear the small errors that a denoiser leaves in the latents.
            jitter = torch.randn(z.shape, generator=noise) * LATENT_NOISE
            error = vae.decode(z + jitter).sample - x
            loss = torch.sqrt(error**2 + 1e-4).mean()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step(min(1.0, (step + 1) / 20, 1.4 * (1 - step / steps)))
            if step % 50 == 49:
                psnr = -10 * torch.log10((error.detach() ** 2).mean() / 4).item()
                left = (time.monotonic() - start) / (step + 1) * (steps - step - 1)
                print(f"decoder {step + 1}/{steps}  {psnr:.2f} dB  ETA {left:.0f} s", flush=True)
        with torch.no_grad():
            x = _batch(seed + 1, 0, 256, size)
            z = vae.encode(x).latent_dist.mode()
            psnr = -10 * torch.log10(((vae.decode(z).sample - x) ** 2).mean() / 4).item()
    _forget_the_past(vae)
    return psnr


def _forget_the_past(vae: AutoencoderKLQwenImage) -> None:
    """Zero the kernel slices that a single frame never uses: untrained noise, better not kept."""
    for module in vae.modules():
        if isinstance(module, QwenImageCausalConv3d):
            module.weight.data[:, :, :-1] = 0
