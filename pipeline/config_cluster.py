"""What a recipe asks of a Ray cluster: its actor pools and its worker group."""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    Field,
    TypeAdapter,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from pipeline.config_types import Positive, Section


def _custom(name: str) -> str:
    if name in ("CPU", "GPU", "memory", "object_store_memory"):
        raise ValueError(f"{name} is no custom resource: use num_cpus and num_gpus")
    return name


# What nodes declare with `ray start --resources`, or a KubeRay group with `resources`.
ResourceName = Annotated[
    str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]{0,62}$"), AfterValidator(_custom)
]
Resources = dict[ResourceName, Annotated[float, Field(gt=0, le=10**6, allow_inf_nan=False)]]


class PoolSettings(Section):
    """A Ray actor pool: its size and what each actor asks of the cluster.

    ``resources`` are custom ones, by which actors are placed on the nodes that have them.
    """

    min: Positive = 1
    max: Positive = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: Resources = {}
    threads: Positive = 1
    adapters_resident: Positive = 64

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} must not be above max {self.max}")
        return self


class ElasticWorkers(Section):
    """A student group of as many workers as there are nodes for, from ``min`` to ``max``.

    Whatever their number, a round is of ``max`` logical ranks, which the workers share out.
    ``resize_seconds``: how often the group may change its size while all is well; each change
    costs the rounds since the last checkpoint.
    """

    min: Positive = 1
    max: Positive = 1
    resize_seconds: Annotated[float, Field(ge=1, le=86400)] = 300.0

    @model_validator(mode="after")
    def _sizes(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"min {self.min} must not be above max {self.max}")
        return self


_COUNT = TypeAdapter(Annotated[int, Field(ge=1, strict=True)])


def _workers(value: Any, _: ValidatorFunctionWrapHandler) -> int | ElasticWorkers:
    """By what is given: of a union, pydantic would report what is wrong with either half."""
    if isinstance(value, Mapping | ElasticWorkers):
        return ElasticWorkers.model_validate(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise PydanticCustomError("int_type", "Input should be a valid integer, or {min, max}")
    return _COUNT.validate_python(value)


class StudentGroupSettings(Section):
    """The Ray Train worker group.

    ``workers``: so many, or ``{min, max}``: see :class:`ElasticWorkers`. ``shard``: base, adapters
    and moments are cut over the workers (FSDP2); of a quantised base only what is trained.
    ``micro_batch``: how many of a worker's samples one forward with gradients takes (null: all of
    them); the rest are accumulated. Neither changes the weights beyond rounding.
    """

    workers: Annotated[int | ElasticWorkers, WrapValidator(_workers)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    resources: Resources = {}
    threads: Positive = 1
    max_failures: Annotated[int, Field(ge=-1)] = 3
    shard: bool = False
    micro_batch: Positive | None = None

    @model_validator(mode="after")
    def _a_gpu_each(self) -> Self:
        if self.logical_ranks > 1 and 0 < self.num_gpus < 1:
            raise ValueError(
                f"num_gpus {self.num_gpus:g} would put several workers on one GPU, "
                "which NCCL refuses: give each 1, or let one worker do"
            )
        return self

    @property
    def logical_ranks(self) -> int:
        """The plan's logical ranks, which are the most workers that there may be."""
        return self.workers if isinstance(self.workers, int) else self.workers.max

    @property
    def min_workers(self) -> int:
        """The fewest workers that the group goes on with."""
        return self.workers if isinstance(self.workers, int) else self.workers.min

    @property
    def size(self) -> str:
        """How many workers, in words."""
        if isinstance(self.workers, int):
            return f"{self.workers} worker" + ("" if self.workers == 1 else "s")
        return f"{self.workers.min} to {self.workers.max} workers"


class ClusterSettings(Section):
    """Who computes what; ``address`` is left to ``RAY_ADDRESS`` and ``ray job submit``."""

    encoder_pool: PoolSettings = PoolSettings()
    teacher_pool: PoolSettings = PoolSettings()
    student_group: StudentGroupSettings = StudentGroupSettings()
