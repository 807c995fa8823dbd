"""What the two halves are built from: plain data.

Ray Data's and Ray Train's own processes (controller, dataset manager, split coordinator) read
these, too, and have no use for diffusers and peft, which take seconds and hundreds of MB to import.
"""

from dataclasses import dataclass, field
from typing import Any

from pipeline.distill.update_settings import UpdateSettings
from pipeline.models.quantization import Quantize
from pipeline.plan import PlanSettings


@dataclass(frozen=True)
class WatchArguments:
    """When to look, and how many rows a preview has; ``every`` 0: never."""

    every: int = 0
    pictures: int = 0

    def due(self, done: int) -> bool:
        """Whether to look once ``done`` rounds are done; with every checkpoint one looks too."""
        return self.every > 0 and done % self.every == 0


@dataclass(frozen=True)
class StudentArguments:
    """What a student worker is built from: plain data.

    ``logical_ranks``: of a round, whatever the number of workers; ``rank`` is the adapters'.
    """

    model: str
    device: str
    dtype: str
    threads: int
    gradient_checkpointing: bool
    rank: int
    alpha: float
    modules: tuple[str, ...]
    start: str | None
    start_fake: str | None
    stores: tuple[str, ...]
    manifest: dict[str, Any]
    plan: PlanSettings
    settings: UpdateSettings
    lag: int
    checkpoint_every: int
    recipe_hash: str
    board: str
    namespace: str
    quantize: Quantize | None = None
    shard: bool = False
    watch: WatchArguments = field(default_factory=WatchArguments)
    logical_ranks: int = 1


@dataclass(frozen=True)
class TeacherPoolArguments:
    """What a rollout actor is built from: plain data, a few kilobytes."""

    model: str
    device: str
    dtype: str
    threads: int
    rank: int
    alpha: float
    modules: tuple[str, ...]
    adapters_resident: int
    stores: tuple[str, ...]
    manifest: dict[str, Any]
    plan: PlanSettings
    guidance: float
    lag: int
    board: str
    namespace: str
    quantize: Quantize | None = None
    simulate: bool = True
