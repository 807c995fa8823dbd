"""Timing: medians after a warm-up, peak memory, the matrix peak, and rows that may fail alone."""

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipeline.storage import write_atomic

GIB = 2**30


@dataclass(frozen=True)
class Timing:
    """seconds: median of the repeats; peak_gib: of allocated device memory, None on a CPU."""

    seconds: float
    peak_gib: float | None


@dataclass
class Record:
    """The bench's rows, printed as they come and written as JSON after each."""

    path: Path
    about: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any] | None:
        """Do a row's work. A row that fails is recorded with its error, and the bench goes on.

        Whatever it fails with (out of memory, a backend or a compiler that is not here or refuses,
        in words of its own): machine time is dear, and the rows after it must not be lost.
        """
        release()
        try:
            row = {"name": name} | work()
        except Exception as error:
            self.fail(name, error)
            return None
        finally:
            release()
        self._keep(row)
        return row

    def fail(self, name: str, error: Exception) -> None:
        """A row that has an error in the place of figures."""
        text = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        short = "out of memory" if isinstance(error, torch.OutOfMemoryError) else text
        self._keep({"name": name, "error": short})

    def _keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        print(_line(row), flush=True)
        self.write()

    def write(self) -> None:
        content = {"about": self.about, "rows": self.rows}
        write_atomic(self.path, (json.dumps(content, indent=1) + "\n").encode())


def release() -> None:
    """Give back what nobody holds any more, so that the next row begins with the same memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def timed(work: Callable[[], object], device: torch.device, repeats: int, warmup: int) -> Timing:
    """The median wall time of ``work``, the device's queue empty before and after."""
    for _ in range(warmup):
        work()
    gpu = device.type == "cuda"
    if gpu:
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if gpu:
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) / GIB if gpu else None
    return Timing(statistics.median(seconds), peak)


def matrix_peak(device: torch.device, dtype: torch.dtype) -> float:
    """The most FLOP/s that square matrix products reach here, of a few sizes."""
    best = 0.0
    for side in (4096, 8192) if device.type == "cuda" else (256, 512):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))

        def products(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            for _ in range(10):
                a @ b

        timing = timed(products, device, repeats=5, warmup=2)
        best = max(best, 10 * 2 * side**3 / timing.seconds)
    return best


def machine(device: torch.device) -> dict[str, Any]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    about: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "device": name,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        about |= {"memory_gib": total / GIB, "cuda": torch.version.cuda}
    return about


def _line(row: dict[str, Any]) -> str:
    def shown(value: object) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)

    rest = "  ".join(f"{k} {shown(v)}" for k, v in row.items() if k != "name" and v is not None)
    return f"{row['name']:34} {rest}"
