"""From slots and keys to batches of tensors: the one place that reads the stores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.models.editor import Conditions, batch_conditions
from pipeline.plan import AnchorSlot, Slot
from pipeline.tensor_store import TensorStore, pooled_key
from pipeline.types import Manifest, Role, Sample


def conditions_of(samples: Sequence[Sample], role: Role, store: TensorStore) -> Conditions:
    """The conditions of samples under one role's prompts.

    Raises:
        ValueError: the samples are not of one token shape.
    """
    buckets = {s.shapes for s in samples}
    if len(buckets) != 1:
        raise ValueError(f"one batch holds samples of {len(buckets)} buckets: {sorted(buckets)}")
    keys = [getattr(s, f"{role}_prompt") for s in samples]
    pooled = [store.get(pooled_key(key)) for key in keys if pooled_key(key) in store]
    return batch_conditions(
        embeds=store.get_many(keys),
        sources=[torch.cat(store.get_many(s.sources)) for s in samples],
        shapes=list(buckets.pop()),
        pooled=pooled or None,
    )


@dataclass(frozen=True)
class SlotBatch:
    """A round's slots with their samples.

    effect_rows: the rows of the effect stream; token_shape: (N, C) of one target.
    """

    samples: list[Sample]
    effect_rows: list[int]
    token_shape: tuple[int, int]

    @classmethod
    def load(cls, slots: Sequence[Slot], manifest: Manifest, store: TensorStore) -> "SlotBatch":
        samples = [manifest.rows[s.effect, s.bucket][s.sample] for s in slots]
        first = samples[0]
        shape = first.tokens, store.get(first.sources[0]).shape[-1]
        return cls(samples, [i for i, s in enumerate(slots) if s.effect is not None], shape)

    def targets(self, store: TensorStore) -> Tensor:
        """The teachers' targets y of the effect rows, ``[E, N, C]``."""
        return targets_of([self.samples[i] for i in self.effect_rows], store)


def anchor_samples(anchors: Sequence[AnchorSlot], manifest: Manifest) -> list[Sample]:
    """The samples of TA-FM's own batch."""
    return [manifest.rows[a.effect, a.bucket][a.sample] for a in anchors]


def targets_of(samples: Sequence[Sample], store: TensorStore) -> Tensor:
    """Targets ``[B, N, C]`` of effect samples."""
    keys = [s.target for s in samples]
    assert all(key is not None for key in keys), "the general stream has no targets"
    return torch.stack(store.get_many([key for key in keys if key is not None]))
