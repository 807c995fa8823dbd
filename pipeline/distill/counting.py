"""Count forwards on the transformer by hooks, not by arithmetic.

Per sample: a forward is 1; a forward whose output will be differentiated is 3 (method.md,
"Forwards per student update").
"""

import torch
from torch import nn


class ForwardCounter:
    """Adds up the cost of every call of a transformer, in sample-forwards."""

    def __init__(self, transformer: nn.Module) -> None:
        self.total = 0
        self._handle = transformer.register_forward_hook(self._count, with_kwargs=True)

    def _count(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], output: object
    ) -> None:
        result = output[0] if isinstance(output, tuple) else output
        assert isinstance(result, torch.Tensor)
        self.total += result.shape[0] * (3 if result.requires_grad else 1)

    def take(self) -> int:
        """The count since the last call."""
        total, self.total = self.total, 0
        return total

    def close(self) -> None:
        self._handle.remove()
