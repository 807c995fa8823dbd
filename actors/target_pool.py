"""The target pool: the teachers' multi-step outputs with guidance, effects mixed in a batch."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.distill.batches import conditions_of
from pipeline.distill.noise import gaussian_batch
from pipeline.distill.sampler import sample_teacher
from pipeline.mirror import local_path
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.families import load_editor
from pipeline.models.quantization import Quantize
from pipeline.tensor_store import TensorStore, write_part
from pipeline.types import TargetJob


class TargetActor:
    """Makes the targets y of :class:`TargetJob` rows into a store.

    Rows of unlike buckets are made one bucket after another, those of more teachers than there
    are slots for some teachers at a time.
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
        steps: int,
        guidance: float,
        keep_norm: bool,
        quantize: Quantize | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        precision = getattr(torch, dtype)
        self.editor = load_editor(model, ["transformer"], device, precision, quantize)
        self.adapters = Adapters(self.editor.transformer)
        self.teachers = TeacherCache(self.adapters, adapters_resident)
        self.store = TensorStore([local_path(s) for s in stores])
        self.folder = local_path(folder)
        self.steps = steps
        self.guidance = guidance
        self.keep_norm = keep_norm

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        columns = (batch[name] for name in TargetJob.COLUMNS)
        jobs = [TargetJob.from_row(*row) for row in zip(*columns, strict=True)]
        made: list[tuple[str, Tensor]] = []
        for _, group in groupby(jobs, key=lambda job: job.sample.shapes):
            alike = list(group)
            for some in self.teachers.groups([job.adapter_hash for job in alike]):
                rows = [alike[i] for i in some]
                self.teachers.ensure({job.adapter_hash: Path(job.adapter) for job in rows})
                made += zip([job.key for job in rows], self._sample(rows).cpu(), strict=True)
        write_part(self.folder, made)
        return {"key": np.asarray(batch["key"])}

    def _sample(self, jobs: list[TargetJob]) -> Tensor:
        """Targets ``[B, N, C]`` of jobs of one bucket."""
        device = self.editor.device
        samples, names = [job.sample for job in jobs], [job.adapter_hash for job in jobs]
        conditions = conditions_of(samples, "teacher", self.store).to(device)
        null = None
        if self.guidance != 1:
            null = conditions_of(samples, "null", self.store).to(device)
            names += names
        shape = (samples[0].tokens, conditions.sources.shape[-1])
        noise = gaussian_batch(shape, [(job.seed, "target") for job in jobs]).to(device)
        with self.adapters.use(*names):
            return sample_teacher(
                self.editor, conditions, null, noise, self.steps, self.guidance, self.keep_norm
            )
