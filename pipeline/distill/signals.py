"""What a round says of itself beyond its losses: by sigma, by stream, by effect, by range.

Plain numbers from tensors that the round has anyway; nothing here touches the training.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SIGMA_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)
_TAILS = 0.002
# Few targets know little of the tails: the range is wider than theirs by this share of its width.
_MARGIN = 0.25
_QUANTILE_VALUES = 1 << 20


def by_sigma(name: str, sigmas: Sequence[float], values: Tensor) -> dict[str, float]:
    """Means of ``values`` ``[n]`` by bins of their sigmas; a bin without values is left out.

    The fake score's error by noise level: where it is high, the student's gradient is noise.
    """
    found: dict[str, list[float]] = {}
    for sigma, value in zip(sigmas, values.tolist(), strict=True):
        low = max(edge for edge in SIGMA_EDGES[:-1] if edge <= sigma)
        high = SIGMA_EDGES[SIGMA_EDGES.index(low) + 1]
        found.setdefault(f"{name}/sigma_{low:.2f}-{high:.2f}", []).append(value)
    return _means(found)


def by_stream(name: str, effects: Sequence[str | None], values: Tensor) -> dict[str, float]:
    """Means of ``values`` ``[B]`` by stream (None: general) and by effect."""
    found: dict[str, list[float]] = {}
    for effect, value in zip(effects, values.tolist(), strict=True):
        keys = ["general"] if effect is None else ["effects", f"effect/{effect}"]
        for key in keys:
            found.setdefault(f"{name}/{key}", []).append(value)
    return _means(found)


@dataclass(frozen=True)
class TeacherRange:
    """The range of the teachers' latents, by channel: low and high ``[C]``, of the targets.

    A quarter wider at either end than what all but a few thousandths of them lie within.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, targets: Sequence[Tensor]) -> "TeacherRange":
        """Of targets ``[N, C]``."""
        tokens = torch.cat(list(targets)).float()
        # `quantile` takes 16 M values at most; at full size a share of the tokens will do.
        step = max(1, tokens.numel() // (_QUANTILE_VALUES * 8))
        ends = torch.tensor([_TAILS / 2, 1 - _TAILS / 2])
        low, high = torch.quantile(tokens[::step], ends, dim=0)
        margin = (high - low) * _MARGIN
        return cls(low - margin, high + margin)

    def outside(self, x: Tensor) -> float:
        """The share of latents ``[..., C]`` that no teacher would make; 1 where not finite."""
        x = x.float().cpu()
        return 1.0 - ((x >= self.low) & (x <= self.high)).float().mean().item()


def _means(found: dict[str, list[float]]) -> dict[str, float]:
    return {key: sum(values) / len(values) for key, values in found.items()}
