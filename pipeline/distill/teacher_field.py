"""What each noised picture's own teacher says of it, many teachers in one batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.distill.batches import conditions_of
from pipeline.distill.sampler import guided
from pipeline.models.adapters import BASE, Adapters, TeacherCache
from pipeline.models.editor import Editor, concatenate
from pipeline.tensor_store import TensorStore
from pipeline.types import Sample, Teacher


@dataclass(frozen=True)
class TeacherField:
    """The frozen teachers on one base.

    guidance: 1 is none, and takes no second forward; keep_norm: see ``sampler.guided_velocity``.
    """

    editor: Editor
    adapters: Adapters
    cache: TeacherCache
    store: TensorStore
    guidance: float
    keep_norm: bool = False

    @torch.no_grad()
    def velocities(
        self, x: Tensor, t: Tensor, samples: Sequence[Sample], teachers: Sequence[Teacher | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Velocities at ``x`` ``[B, N, C]``, sigma ``t`` ``[B]``, in as few batches as slots allow.

        Under each sample's teacher prompt and, where there is guidance, under its null prompt. A
        sample without a teacher is the base's.
        """
        cond = torch.empty_like(x)
        uncond = None if self.guidance == 1 else torch.empty_like(x)
        for group in self.cache.groups([None if a is None else a.adapter_hash for a in teachers]):
            some = [samples[i] for i in group], [teachers[i] for i in group]
            here, without = self._of_resident(x[group], t[group], *some)
            cond[group] = here
            if uncond is not None and without is not None:
                uncond[group] = without
        return cond, uncond

    def guided_velocity(
        self, x: Tensor, t: Tensor, samples: Sequence[Sample], teachers: Sequence[Teacher | None]
    ) -> Tensor:
        """The velocity that the teachers' own sampler follows, ``[B, N, C]``."""
        cond, uncond = self.velocities(x, t, samples, teachers)
        if uncond is None:
            return cond
        return guided(cond, uncond, self.guidance, self.keep_norm)

    def _of_resident(
        self, x: Tensor, t: Tensor, samples: list[Sample], teachers: list[Teacher | None]
    ) -> tuple[Tensor, Tensor | None]:
        """:meth:`velocities` of no more teachers than there are slots, in one batch."""
        wanted = {a.adapter_hash: Path(a.adapter) for a in teachers if a is not None}
        self.cache.ensure(wanted)
        names = [BASE if a is None else a.adapter_hash for a in teachers]
        given = conditions_of(samples, "teacher", self.store)
        if self.guidance == 1:
            with self.adapters.use(*names):
                return self.editor.velocity(x, t, given.to(self.editor.device)), None
        both = concatenate(given, conditions_of(samples, "null", self.store))
        with self.adapters.use(*names, *names):
            v = self.editor.velocity(
                torch.cat([x, x]), torch.cat([t, t]), both.to(self.editor.device)
            )
        cond, uncond = v.chunk(2)
        return cond, uncond
