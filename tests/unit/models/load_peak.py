"""Load a folder's transformer and say what it took: run by ``test_loading.py``, on its own.

The peak of resident memory is Linux's own account, reset once all is imported. Pages of a mapped
file count while they are mapped, as they should.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import QwenImageTransformer2DModel

from pipeline.models.loading import load_transformer


def resident(field: str) -> int:
    """A line of ``/proc/self/status`` in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith(f"{field}:")]
    return int(line.split()[1]) * 1024


def main() -> None:
    # What only the first load does (lazy imports) is not the folder's.
    small, folder, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    load_transformer(QwenImageTransformer2DModel, small, "cpu", torch.float32)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM becomes VmRSS
    before = resident("VmRSS")
    assert resident("VmHWM") - before < 2**20
    model = load_transformer(QwenImageTransformer2DModel, folder, "cpu", getattr(torch, dtype))
    # Mapped pages come when they are read: read them all, then look. A sum makes no copy.
    total = sum(p.sum().item() for p in model.parameters())
    peak = resident("VmHWM") - before
    print(json.dumps({"peak": peak, "sum": total, "dtype": str(model.dtype)}))


if __name__ == "__main__":
    main()
