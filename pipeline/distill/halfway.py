"""Where a lesson stands, in one file: it goes on there after a stop, to the same bits.

A step's batch and noise are functions of (seed, step), so that weights, average and the optimizer's
moments are all the state there is. No pickle: each of them is a tensor.
"""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import mirror
from pipeline.storage import is_whole, seal_of, write_sealed

SECONDS = 120.0
# Writing takes at most this share of a lesson's time, however large its LoRA.
_SHARE = 0.05
# What Muon and AdamW keep of a parameter.
_MOMENTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")


class Halfway:
    """A lesson's file, written now and then while it lasts.

    seconds: at least so long between two writes.
    """

    def __init__(self, file: Path, seconds: float = SECONDS) -> None:
        self.file, self._seconds = file, seconds
        self._due = time.monotonic() + seconds

    def read(self, optimizer: torch.optim.Optimizer, **states: dict[str, Tensor]) -> int:
        """Put what is in the file into live tensors by name; the number of steps done, 0 if none.

        ``weights`` are what the optimizer moves. A damaged file is removed (and said), one of other
        tensors ignored.
        """
        if not is_whole(self.file):
            return 0
        held = load_file(self.file)
        if any(f"{name}/{key}" not in held for name, own in states.items() for key in own):
            return 0
        with torch.no_grad():
            for name, own in states.items():
                for key, live in own.items():
                    live.copy_(held[f"{name}/{key}"])
        for key, parameter in states["weights"].items():
            moments = {m: held.get(f"moments/{key}/{m}") for m in _MOMENTS}
            # AdamW's count of steps stays where it keeps it itself: on the CPU.
            on = {
                m: value if m == "step" else value.to(parameter.device)
                for m, value in moments.items()
                if value is not None
            }
            if on:
                optimizer.state[parameter] = on
        return int(held["step"])

    def write(
        self, step: int, optimizer: torch.optim.Optimizer, **states: dict[str, Tensor]
    ) -> None:
        """Keep where it stands after ``step`` steps, if it is time."""
        began = time.monotonic()
        if began < self._due:
            return
        tensors = {"step": torch.tensor(step)}
        for name, own in states.items():
            tensors |= {f"{name}/{key}": value.detach() for key, value in own.items()}
        for key, parameter in states["weights"].items():
            state = optimizer.state[parameter]
            tensors |= {f"moments/{key}/{m}": state[m] for m in _MOMENTS if m in state}
        whole = {key: value.cpu().contiguous() for key, value in tensors.items()}
        write_sealed(self.file, lambda path: save_file(whole, path))
        now = time.monotonic()
        self._due = now + max(self._seconds, (now - began) / _SHARE)

    def remove(self) -> None:
        """What it was for is done."""
        for path in (self.file, seal_of(self.file)):
            mirror.remove(path)
