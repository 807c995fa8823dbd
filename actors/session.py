"""Start Ray for a run, or join the cluster that is there."""

import contextlib
import logging
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator

import ray
import ray.data

from pipeline.config import ClusterSettings, ModelSettings

NAMESPACE = "collectionlora"


@contextlib.contextmanager
def ray_session(cluster: ClusterSettings) -> Iterator[None]:
    """Ray for the block: ``RAY_ADDRESS`` (which ``ray job submit`` sets) or a local cluster.

    A local cluster gets as many logical CPUs as the recipe's actors ask for together, plus one
    for Ray Data's own tasks, so that a small machine cannot starve a pool into a deadlock; and
    all the custom resources by which the recipe places actors on a larger cluster's nodes.
    """
    if ray.is_initialized():
        yield
        return
    # uv's hook would rebuild the environment in each worker.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    common = {
        "namespace": NAMESPACE,
        "log_to_driver": bool(os.environ.get("COLLECTIONLORA_ACTOR_LOGS")),
        "logging_level": "warning",
    }
    if os.environ.get("RAY_ADDRESS"):
        ray.init(**common)
    else:
        # "local": some other cluster of this machine is none of ours.
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, asked_cpus(cluster)),
            resources=asked_resources(cluster),
            include_dashboard=False,
            **common,
        )
    # ray.init sets a handler of its own, under which a driver that waits for Ray Train never
    # ends. All there is to lose is in the last checkpoint, so leave at once: Ray ends the actors.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _leave)
    # The stages draw their own progress bars.
    ray.data.DataContext.get_current().enable_progress_bars = False
    say_why_it_failed()
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def say_why_it_failed() -> None:
    """Let Ray Data raise an actor's own exception in place of "UDF failed to process a block"."""
    ray.data.DataContext.get_current().raise_original_map_exception = True


def _leave(number: int, frame: object) -> None:
    print("terminated; the same command goes on from the last checkpoint", file=sys.stderr)
    sys.stderr.flush()
    os._exit(128 + number)


def asked_cpus(cluster: ClusterSettings) -> int:
    """Logical CPUs that the recipe's actors ask for together, and one for Ray Data's tasks."""
    group, pool = cluster.student_group, cluster.teacher_pool
    distill = group.logical_ranks * group.num_cpus + pool.max * pool.num_cpus
    encode = cluster.encoder_pool.max * cluster.encoder_pool.num_cpus
    return int(max(distill, encode)) + 1


def asked_resources(cluster: ClusterSettings) -> dict[str, float]:
    """Custom resources that the recipe's actors ask for together."""
    group, asked = cluster.student_group, defaultdict[str, float](float)
    parts = [(pool.max, pool.resources) for pool in (cluster.encoder_pool, cluster.teacher_pool)]
    for count, resources in [*parts, (group.logical_ranks, group.resources)]:
        for name, amount in resources.items():
            asked[name] += count * amount
    return dict(asked)


def device_of(model: ModelSettings, num_gpus: float) -> str:
    """The device of an actor that asked for so many GPUs."""
    if model.device != "auto":
        return model.device
    return "cuda" if num_gpus > 0 else "cpu"
