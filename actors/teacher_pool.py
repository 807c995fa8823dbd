"""The teacher pool: Ray Data actors that roll the student out and score it by its teachers."""

import time
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.exceptions
import torch

from actors.announcer import first_word, gpu_memory
from actors.health import Doing
from pipeline.distill.rollout import STUDENT, RolloutWorker
from pipeline.mirror import local_path
from pipeline.models.adapters import Adapters, TeacherCache
from pipeline.models.families import load_editor
from pipeline.models.quantization import Quantize
from pipeline.plan import PlanSettings
from pipeline.tensor_store import TensorStore
from pipeline.types import Manifest, Rollout


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


def rollout_worker(arguments: TeacherPoolArguments) -> RolloutWorker:
    """Build the rollout half in this process."""
    torch.set_num_threads(arguments.threads)
    dtype = getattr(torch, arguments.dtype)
    quantize, device = arguments.quantize, arguments.device
    editor = load_editor(arguments.model, ["transformer"], device, dtype, quantize)
    adapters = Adapters(editor.transformer)
    lora = arguments.rank, arguments.alpha, arguments.modules
    adapters.add(STUDENT, *lora, seed=0, masters=False)
    return RolloutWorker(
        editor=editor,
        adapters=adapters,
        teachers=TeacherCache(adapters, arguments.adapters_resident),
        store=TensorStore([local_path(folder) for folder in arguments.stores]),
        manifest=Manifest.from_dict(arguments.manifest),
        plan=arguments.plan,
        guidance=arguments.guidance,
    )


class TeacherActor:
    """``map_batches`` class: one row ``{round, rank}`` in, one block of rollout rows out."""

    def __init__(self, arguments: TeacherPoolArguments) -> None:
        self.arguments = arguments
        self.board = ray.get_actor(arguments.board, namespace=arguments.namespace)
        self.word = first_word()
        self.board.heard.remote(self.word)
        self.worker = rollout_worker(arguments)
        self.loaded = -1
        self.ended = time.monotonic()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        (round_index,), (rank,) = batch["round"].tolist(), batch["rank"].tolist()
        version = max(0, round_index - self.arguments.lag)
        self.word = replace(self.word, round=round_index, rank=rank)
        if version != self.loaded:
            self._say("waiting")
            weights = self._policy(version)
            self.worker.load_policy({k: torch.from_numpy(v) for k, v in weights.items()})
            self.loaded = version
        self._say("working")
        began = time.monotonic()
        rollout: Rollout = self.worker.roll(round_index, rank, version)
        ended = time.monotonic()
        self._say("done", ended - began, ended - self.ended)
        self.ended = ended
        return rollout.columns()

    def _say(self, doing: Doing, busy: float = 0.0, wall: float = 0.0) -> None:
        word = replace(self.word, doing=doing, busy=busy, wall=wall, memory=gpu_memory())
        self.board.heard.remote(word)

    def _policy(self, version: int) -> dict[str, Any]:
        """A version's weights; asked for again where the student that had them died."""
        while True:
            (policy,) = ray.get(self.board.policy.remote(version))
            try:
                weights: dict[str, Any] = ray.get(policy)
                return weights
            except ray.exceptions.ObjectLostError:
                time.sleep(1)
