"""The sampler pool: one picture for every method, effect and held-out photograph, and its cost."""

import json
import time
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from pipeline.distill.batches import conditions_of
from pipeline.distill.counting import ForwardCounter
from pipeline.distill.noise import gaussian_batch
from pipeline.distill.sampler import sample_student, sample_teacher
from pipeline.evaluation.effectbench import EvalRow, cost_key
from pipeline.mirror import local_path
from pipeline.models.adapters import BASE, Adapters, TeacherCache
from pipeline.models.families import load_editor
from pipeline.models.quantization import Quantize
from pipeline.tensor_store import TensorStore, write_part
from pipeline.types import Sample


class SamplerActor:
    """Makes the pictures of :class:`EvalRow` rows into a store, each with its cost.

    A batch's part holds for each row the picture ``[H, W, 3]`` in [0, 1] under its key, and under
    :func:`cost_key` its share of the batch's wall time (sampling and decoding, without reading
    and writing) and of the transformer's forwards, which hooks count. Rows of unlike settings are
    run one setting after another, so that a picture's time is its own method's.
    """

    def __init__(
        self,
        model: str,
        device: str,
        dtype: str,
        threads: int,
        adapters_resident: int,
        stores: list[str],
        folder: str,
        quantize: Quantize | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        precision = getattr(torch, dtype)
        self.editor = load_editor(model, ["transformer", "vae"], device, precision, quantize)
        self.adapters = Adapters(self.editor.transformer)
        self.resident = TeacherCache(self.adapters, adapters_resident)
        self.store = TensorStore([local_path(s) for s in stores])
        self.folder = local_path(folder)
        self.counter = ForwardCounter(self.editor.transformer)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        tensors: list[tuple[str, Tensor]] = []
        costs: list[Tensor] = []
        for _, group in groupby(_rows(batch), key=_setting):
            rows = list(group)
            wanted = {r["adapter_hash"]: Path(r["adapter"]) for r in rows if r["adapter_hash"]}
            self.resident.ensure(wanted)
            self.counter.take()
            start = time.monotonic()
            pictures = self.edit(rows)
            milliseconds = 1000 * (time.monotonic() - start) / len(rows)
            cost = torch.tensor([milliseconds, self.counter.take() / len(rows)])
            for row, picture in zip(rows, pictures, strict=True):
                tensors += [(row["key"], picture), (cost_key(row["key"]), cost)]
                costs.append(cost)
        write_part(self.folder, tensors)
        milliseconds_each, forwards = torch.stack(costs).numpy().T
        return {
            "key": np.asarray(batch["key"]),
            "seconds": milliseconds_each / 1000,
            "nfe": forwards,
        }

    @torch.no_grad()
    def edit(self, rows: Sequence[EvalRow]) -> Tensor:
        """Pictures ``[B, H, W, 3]`` on the CPU, of rows that share all of :func:`_setting`.

        Their adapters must be resident already, so that loading them is not timed.
        """
        first, device = rows[0], self.editor.device
        samples = [
            Sample.from_dict(
                {
                    "sources": [r["source"]],
                    "student_prompt": r["prompt"],
                    "teacher_prompt": r["prompt"],
                    "null_prompt": r["null_prompt"],
                    "target": None,
                    "shapes": json.loads(r["shapes"]),
                }
            )
            for r in rows
        ]
        names = [r["adapter_hash"] or BASE for r in rows]
        conditions = conditions_of(samples, "teacher", self.store).to(device)
        null = None
        if first["guidance"] != 1:
            null = conditions_of(samples, "null", self.store).to(device)
            names += names
        shape = (samples[0].tokens, conditions.sources.shape[-1])

        def noise(step: int) -> Tensor:
            keys = [
                (r["seed"], "evaluate", r["effect"], r["photograph"], r["draw"], step) for r in rows
            ]
            return gaussian_batch(shape, keys).to(device)

        steps, guidance, keep = first["steps"], first["guidance"], first["keep_norm"]
        with self.adapters.use(*names):
            if first["sampler"] == "euler":
                x0 = sample_teacher(self.editor, conditions, null, noise(0), steps, guidance, keep)
            else:
                shift = first["shift"]
                x0 = sample_student(self.editor, conditions, noise(0), noise, steps, shift)
        pictures = self.editor.decode(x0, samples[0].grid)
        return pictures.permute(0, 2, 3, 1).cpu()


def _setting(row: EvalRow) -> tuple[object, ...]:
    """What all rows of one forward must share."""
    own = (row["method"], row["sampler"], row["steps"], row["guidance"], row["shift"])
    return *own, row["keep_norm"], row["shapes"]


def _rows(batch: dict[str, Any]) -> list[EvalRow]:
    """A Ray Data batch of columns as rows of plain Python values."""
    columns = (np.asarray(batch[name]).tolist() for name in EvalRow.__annotations__)
    values = zip(*columns, strict=True)
    return [cast("EvalRow", dict(zip(EvalRow.__annotations__, row, strict=True))) for row in values]
