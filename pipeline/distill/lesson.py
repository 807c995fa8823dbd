"""One LoRA to train: what a lesson's task is told, wherever it runs."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.types import Role, Sample, Teacher

# A condition, and the store's key of what it is to become.
Pair = tuple[Sample, str]


@dataclass(frozen=True)
class Lesson:
    """A LoRA to train: its encoded pairs, where to write it, and its own seed.

    role: whose prompts it learns under; start: a LoRA file of the same shape to begin with; known:
    pairs on which it is held to that file; general: those on which it is held to the base;
    teachers: of each pair the one whose guided velocity it is to have (empty: flow matching on
    the targets).
    """

    name: str
    pairs: tuple[Pair, ...]
    out: Path
    seed: int
    role: Role = "teacher"
    start: Path | None = None
    known: tuple[Pair, ...] = ()
    general: tuple[Pair, ...] = ()
    teachers: tuple[Teacher, ...] = ()
