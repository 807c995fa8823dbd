"""Ray Data deals the stream's blocks as ``Dealing`` says, in whole hands and in uneven ones."""

import threading
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from ray.data import ActorPoolStrategy

from actors.student_group import DealtInTurn
from pipeline.distill.dealing import Dealing

FIRST, ROUNDS, BATCH = 3, 4, 2


@ray.remote(num_cpus=0, max_concurrency=16)
class Policies:
    """Which rounds have been trained: at lag 0 the next round's blocks wait for them."""

    def __init__(self) -> None:
        self.version, self.changed = FIRST, threading.Condition()

    def publish(self, version: int) -> None:
        with self.changed:
            self.version = max(self.version, version)
            self.changed.notify_all()

    def wait(self, version: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.version >= version, 60)


class Rollouts:
    """A block of several rows, once its policy is there."""

    def __init__(self, policies: Any) -> None:
        self.policies = policies

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        ray.get(self.policies.wait.remote(int(batch["round"][0])))
        return {name: np.repeat(batch[name], BATCH) for name in ("round", "rank")}


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "workers"), [(3, 1), (2, 2), (3, 2), (4, 3), (8, 3)])
def test_every_worker_gets_its_own_blocks_at_lag_0(ranks: int, workers: int) -> None:
    policies = Policies.remote()  # type: ignore[attr-defined]
    rows = [{"round": r, "rank": k} for r in range(FIRST, FIRST + ROUNDS) for k in range(ranks)]
    stream = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Rollouts,
        fn_constructor_kwargs={"policies": policies},
        batch_size=None,
        compute=ActorPoolStrategy(min_size=2, max_size=2),
        num_cpus=0.25,
        allow_out_of_order_execution=False,
    )
    parts = DealtInTurn().configure({"train": stream}, workers, None, None)
    dealing = Dealing(ranks, workers, FIRST)
    barrier, wrong = threading.Barrier(workers), list[str]()

    def consume(worker: int) -> None:
        blocks = iter(parts[worker]["train"].iter_batches(batch_size=None, prefetch_batches=0))
        for r in range(FIRST, FIRST + ROUNDS):
            for rank in dealing.owned(r, worker):
                block = next(blocks)
                found = set(zip(block["round"].tolist(), block["rank"].tolist(), strict=True))
                if found != {(r, rank)} or len(block["rank"]) != BATCH:
                    wrong.append(f"worker {worker} wants {r, rank}, got {block}")
            barrier.wait(60)
            ray.get(policies.publish.remote(r + 1))
        if next(blocks, None) is not None:
            wrong.append(f"worker {worker} got more than its hands")

    threads = [threading.Thread(target=consume, args=(worker,)) for worker in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    assert not barrier.broken
