"""The rows that flow between stages, typed, with their shapes.

Notation: B slots, S student steps, F fake updates, N target tokens, M source tokens, L prompt
tokens, C latent channels a token, D prompt channels. Stores hold tensors under content keys;
rows carry keys, and only what is on-policy travels as tensors.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Array = NDArray[np.float32]

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
    """One (effect, source image, draw): the content keys of all that a slot needs.

    Example: ``Sample(source="9f..", student_prompt="1c..", teacher_prompt="77..",
    null_prompt="e0..", target="5b..", rows=4, columns=4)``. In the general stream the student's
    and the teacher's prompts are the same and there is no target.
    """

    source: str
    student_prompt: str
    teacher_prompt: str
    null_prompt: str
    target: str | None
    rows: int
    columns: int


@dataclass(frozen=True)
class EffectEntry:
    """An effect as the distillation sees it."""

    name: str
    adapter: str
    adapter_hash: str
    weight: float
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class Manifest:
    """Everything that the actors need to know of the collection; small, and plain data."""

    effects: tuple[EffectEntry, ...]
    general: tuple[Sample, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Manifest":
        return cls(
            effects=tuple(
                EffectEntry(**{**e, "samples": tuple(Sample(**s) for s in e["samples"])})
                for e in data["effects"]
            ),
            general=tuple(Sample(**s) for s in data["general"]),
        )


@dataclass(frozen=True)
class Rollout:
    """The teacher pool's product for one (round, rank): a Ray Data block of B rows.

    round, rank ``[B]``; policy_version ``[B]``: the student weights that made it;
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
