"""What a LoRA file holds, free of any file's habits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

# (out, in) of linear layers, by module path.
Shapes = Mapping[str, tuple[int, int]]


@dataclass(frozen=True)
class LoraModule:
    """One layer's LoRA: ``down`` ``[r, in]``, ``up`` ``[out, r]``; alpha None means the rank.

    It adds ``alpha / rank * up @ down`` to the layer's weight ``[out, in]``.
    """

    down: Tensor
    up: Tensor
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """What ``up @ down`` is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True)
class LoraFile:
    """A LoRA by the transformer's own module paths, such as ``transformer_blocks.0.attn.to_q``.

    metadata: what the file says beside its tensors, less the settings that alphas come from.
    """

    path: Path
    modules: dict[str, LoraModule]
    metadata: dict[str, str] = field(default_factory=dict)
