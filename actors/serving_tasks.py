"""Serving: what it takes to switch between the LoRAs of a bank, measured in one process."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch

from pipeline.models.adapters import Adapters
from pipeline.models.families import load_editor
from pipeline.models.lora_formats import linear_shapes, read_lora

LOADED = "loaded"


@dataclass(frozen=True)
class Serving:
    """Queries served with one adapter loaded at a time.

    switches: loads, the first included; seconds: of each load, from the file (which the system
    may have in its cache) to the layers; adapter_bytes: the largest that was resident; base_bytes:
    the transformer's own weights.
    """

    switches: int
    seconds: tuple[float, ...]
    adapter_bytes: int
    base_bytes: int


@ray.remote  # type: ignore[untyped-decorator]
def serve(
    shuffles: Sequence[Sequence[tuple[str, str]]],
    model: str,
    device: str,
    dtype: str,
    threads: int,
) -> list[Serving]:
    """Serve lists of queries, each a LoRA's (name, file); a new list begins with none loaded."""
    torch.set_num_threads(threads)
    editor = load_editor(model, ["transformer"], device, getattr(torch, dtype))
    base = sum(p.numel() * p.element_size() for p in editor.transformer.parameters())
    adapters = Adapters(editor.transformer)
    shapes = linear_shapes(editor.transformer)
    served = []
    for queries in shuffles:
        loaded, seconds, largest = "", [], 0
        for name, file in queries:
            if name == loaded:
                continue
            start = time.perf_counter()
            if loaded:
                adapters.remove(LOADED)
            adapters.add_file(LOADED, read_lora(file, shapes))
            if editor.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
            loaded = name
            state = adapters.state(LOADED).values()
            largest = max(largest, sum(t.numel() * t.element_size() for t in state))
        if loaded:
            adapters.remove(LOADED)
        served.append(Serving(len(seconds), tuple(seconds), largest, base))
    return served
