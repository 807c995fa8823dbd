"""A small Ray cluster of this process's own, and SIGKILL to parts of it: to see what is lost."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

# What a worker process calls itself, and what it is in this project.
TITLES = {
    "TeacherActor": "teacher",
    "PolicyBoard": "board",
    "TrainWorker": "student",
    "TrainController": "controller",
    "SplitCoordinator": "stream",
    "EncoderActor": "encoder",
    "TargetActor": "target maker",
    "SamplerActor": "sampler",
    "JudgeActor": "judge",
    "teach_effect": "teaching",
}
_STORE_BYTES = 150 * 2**20
_START_TRIES = 3


@dataclass(frozen=True)
class Victim:
    """A process that may be killed."""

    kind: str
    pid: int


class Ground:
    """Two Ray nodes: the head, with the driver and room for all, and a second one, like it.

    So that a run goes on while the second is away. Nothing outside it is ever touched: its
    processes are found below its own raylets.
    """

    def __init__(self, cluster: Any, node: dict[str, Any]) -> None:
        self._cluster, self._node = cluster, node
        self._second = self._start()

    @property
    def address(self) -> str:
        """For ``RAY_ADDRESS``."""
        return str(self._cluster.address)

    @property
    def second_raylet(self) -> Victim:
        """The raylet of the second node."""
        return Victim("raylet", _raylet(self._second))

    def workers(self) -> list[Victim]:
        """The worker processes of both nodes that do something of this project's."""
        found = []
        for node in self._cluster.list_all_nodes():
            try:
                children = psutil.Process(_raylet(node)).children()
            except psutil.NoSuchProcess:
                continue
            for child in children:
                try:
                    title = " ".join(child.cmdline())
                except psutil.Error:
                    continue
                kind = next((k for name, k in TITLES.items() if name in title), None)
                if kind and title.startswith("ray::"):
                    found.append(Victim(kind, child.pid))
        return found

    def renew_second(self) -> None:
        """Clear away what a killed raylet left of its node, and start another one."""
        self._cluster.remove_node(self._second, allow_graceful=False)
        self._second = self._start()

    def _start(self) -> Any:
        for left in reversed(range(_START_TRIES)):
            try:
                return self._cluster.add_node(**self._node)
            except Exception:
                # Ray's own patience, 30 s, is short on a busy machine.
                if not left:
                    raise
        raise AssertionError


def kill(victim: Victim) -> None:
    """SIGKILL; a process that has just ended by itself is nobody's loss."""
    with suppress(ProcessLookupError):
        os.kill(victim.pid, signal.SIGKILL)


@contextmanager
def killing_ground(cpus: int, resources: dict[str, float]) -> Iterator[Ground]:
    """A :class:`Ground` for the block, in a folder of its own: no other driver finds it."""
    folder = Path(tempfile.mkdtemp(prefix="cl-"))
    mine = {
        "RAY_TMPDIR": str(folder),
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    }
    before = {name: os.environ.get(name) for name in mine}
    os.environ.update(mine)
    from ray.cluster_utils import Cluster

    node = {"num_cpus": cpus, "resources": resources, "object_store_memory": _STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False})
    try:
        yield Ground(cluster, node)
    finally:
        cluster.shutdown()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        # Workers let go of their files a moment after their raylet.
        time.sleep(1)
        shutil.rmtree(folder, ignore_errors=True)


def _raylet(node: Any) -> int:
    (raylet,) = node.all_processes["raylet"]
    return int(raylet.process.pid)
