"""The rows that flow between stages, typed, with their shapes.

Notation: B slots, S student steps, F fake updates, N target tokens, M source tokens, L prompt
tokens, C latent channels a token, D prompt channels. Stores hold tensors under content keys;
rows carry keys, and only what is on-policy travels as tensors.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.models.geometry import TokenShape

# All token shapes of a sample: one batch is of one bucket.
Bucket = tuple[TokenShape, ...]
Array = NDArray[np.float32]
# Whose prompt a sample is shown under.
Role = Literal["student", "teacher", "null"]

# One stored tensor. Latents ``[N, C]``, prompt states ``[L, D]`` or targets ``[N, C]``.
TENSOR_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shape", pa.list_(pa.int32()), nullable=False),
        pa.field("data", pa.binary(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Sample:
    """One (effect, source images, draw): the content keys of all that a slot needs.

    Example: ``Sample(sources=("9f..",), student_prompt="1c..", teacher_prompt="77..",
    null_prompt="e0..", target="5b..", shapes=((1, 4, 4), (1, 4, 4)))``. In the general stream the
    student's and the teacher's prompts are the same and there is no target. shapes: the target's
    token shape, then each source's; samples that agree in them are one bucket.
    """

    sources: tuple[str, ...]
    student_prompt: str
    teacher_prompt: str
    null_prompt: str
    target: str | None
    shapes: Bucket

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the target's tokens."""
        return self.shapes[0][1:]

    @property
    def tokens(self) -> int:
        """Tokens of the target, N."""
        rows, columns = self.grid
        return rows * columns

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Sample":
        """From :func:`dataclasses.asdict`, also after JSON has turned tuples into lists."""
        shapes = tuple((int(f), int(r), int(c)) for f, r, c in data["shapes"])
        return cls(**{**data, "sources": tuple(data["sources"]), "shapes": shapes})


@dataclass(frozen=True)
class Teacher:
    """A frozen effect LoRA: its file, and the hash of its content, which names it."""

    adapter: str
    adapter_hash: str


@dataclass(frozen=True)
class TargetJob:
    """One target to make: a sample under its teacher, from noise of its own seed."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("key", "adapter", "adapter_hash", "sample", "seed")

    key: str
    adapter: str
    adapter_hash: str
    sample: Sample
    seed: int

    def row(self) -> dict[str, Any]:
        """For Ray Data, which is happiest with flat columns: the sample as JSON."""
        return {**vars(self), "sample": json.dumps(asdict(self.sample))}

    @classmethod
    def from_row(
        cls, key: str, adapter: str, adapter_hash: str, sample: str, seed: int
    ) -> "TargetJob":
        whole = Sample.from_dict(json.loads(sample))
        return cls(str(key), str(adapter), str(adapter_hash), whole, int(seed))


@dataclass(frozen=True)
class EffectEntry:
    """An effect as the distillation sees it; held_back: what only looks at the student see."""

    name: str
    adapter: str
    adapter_hash: str
    weight: float
    samples: tuple[Sample, ...]
    held_back: tuple[Sample, ...] = ()

    @property
    def teacher(self) -> Teacher:
        return Teacher(self.adapter, self.adapter_hash)


@dataclass(frozen=True)
class Manifest:
    """Everything that the actors need to know of the collection; small, and plain data."""

    effects: tuple[EffectEntry, ...]
    general: tuple[Sample, ...]

    @cached_property
    def buckets(self) -> tuple[Bucket, ...]:
        """The buckets of all samples, in the order of their first appearance."""
        every = [s.shapes for e in self.effects for s in e.samples]
        return tuple(dict.fromkeys([*every, *(s.shapes for s in self.general)]))

    @cached_property
    def rows(self) -> dict[tuple[int | None, int], list[Sample]]:
        """The samples of an effect (None: the general rows) within a bucket, both by index."""
        number = {bucket: i for i, bucket in enumerate(self.buckets)}
        found: dict[tuple[int | None, int], list[Sample]] = {}
        streams = [*((i, e.samples) for i, e in enumerate(self.effects)), (None, self.general)]
        for stream, samples in streams:
            for sample in samples:
                found.setdefault((stream, number[sample.shapes]), []).append(sample)
        return found

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Manifest":
        return cls(
            effects=tuple(
                EffectEntry(
                    **e | {k: tuple(map(Sample.from_dict, e[k])) for k in ("samples", "held_back")}
                )
                for e in data["effects"]
            ),
            general=tuple(map(Sample.from_dict, data["general"])),
        )


@dataclass(frozen=True)
class Rollout:
    """The teacher pool's product for one (round, rank): a Ray Data block of B rows.

    round, rank ``[B]``: the plan's, a logical rank; policy_version ``[B]``: the weights it is of;
    x_k ``[B, N, C]``: the student's input at its slot's step; x_g ``[B, N, C]``: its prediction;
    teacher_x0 ``[B, N, C]``: the guided teacher at x_g noised to t; fake_x0 ``[B, F, N, C]``:
    samples for the fake score; ts_x0 ``[B, N, C]``: the student's y_hat of target simulation,
    ts_teacher_x0 ``[B, N, C]``: the teacher there (both zero in the general stream);
    teacher_forwards ``[B]`` and seconds ``[B]``: counted cost, shared out over the rows.
    """

    round: NDArray[np.int64]
    rank: NDArray[np.int64]
    policy_version: NDArray[np.int64]
    x_k: Array
    x_g: Array
    teacher_x0: Array
    fake_x0: Array
    ts_x0: Array
    ts_teacher_x0: Array
    teacher_forwards: NDArray[np.float64]
    seconds: NDArray[np.float64]

    def columns(self) -> dict[str, NDArray[Any]]:
        """As a Ray Data numpy batch."""
        return dict(vars(self))

    @classmethod
    def from_columns(cls, batch: dict[str, NDArray[Any]]) -> "Rollout":
        return cls(**{name: np.asarray(batch[name]) for name in cls.__dataclass_fields__})
