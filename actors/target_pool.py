"""The target pool: the teachers' multi-step outputs with guidance, effects mixed in a batch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.distill.batches import conditions_of
from pipeline.distill.noise import gaussian_batch
from pipeline.distill.sampler import euler_sample, guided_velocity
from pipeline.distill.schedule import teacher_sigmas
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.editor import concatenate
from pipeline.models.qwen_image_edit import QwenImageEditor
from pipeline.tensor_store import TensorStore, write_part
from pipeline.types import Sample


class TargetActor:
    """Makes targets y for rows ``{key, adapter, adapter_hash, sample, seed}`` into a store."""

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
    ) -> None:
        torch.set_num_threads(threads)
        self.editor = QwenImageEditor.load(model, ["transformer"], device, getattr(torch, dtype))
        self.adapters = Adapters(self.editor.transformer)
        self.teachers = TeacherCache(self.adapters, adapters_resident)
        self.store = TensorStore([Path(s) for s in stores])
        self.folder = Path(folder)
        shift = float(self.editor.scheduler.config["shift"])
        self.sigmas = teacher_sigmas(steps, shift)
        self.guidance = guidance

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        samples = [Sample(**s) for s in batch["sample"]]
        names = [str(name) for name in batch["adapter_hash"]]
        paths = [Path(str(path)) for path in batch["adapter"]]
        self.teachers.ensure(dict(zip(names, paths, strict=True)))
        y = self._sample(samples, names, [int(s) for s in batch["seed"]])
        write_part(self.folder, list(zip(map(str, batch["key"]), y.cpu(), strict=True)))
        return {"key": np.asarray(batch["key"])}

    @torch.no_grad()
    def _sample(self, samples: list[Sample], names: list[str], seeds: list[int]) -> Tensor:
        device = self.editor.device
        conditions = concatenate(
            conditions_of(samples, "teacher", self.store),
            conditions_of(samples, "null", self.store),
        ).to(device)
        first = samples[0]
        shape = (first.rows * first.columns, conditions.sources.shape[-1])
        noise = gaussian_batch(shape, [(seed, "target") for seed in seeds]).to(device)

        def pair(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            v = self.editor.velocity(torch.cat([x, x]), torch.cat([t, t]), conditions)
            cond, uncond = v.chunk(2)
            return cond, uncond

        with self.adapters.use(*names, *names):
            return euler_sample(guided_velocity(pair, self.guidance), noise, self.sigmas)
