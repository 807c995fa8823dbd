"""The policy board: which student weights exist, and where the run stands.

A named async actor. The student group publishes; the teacher pool waits for the exact version
of its round. Holding object-store references, not weights, it costs nothing to restart.
"""

import asyncio
from typing import Any

import ray


@ray.remote(num_cpus=0, max_concurrency=256)
class PolicyBoard:
    """Versions of the student's weights, and the metrics of finished rounds."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._policies: dict[int, Any] = {}
        self._changed = asyncio.Condition()
        self._metrics: list[dict[str, float]] = []
        self._previews: list[tuple[int, bytes]] = []

    async def publish(self, version: int, policy: list[Any]) -> None:
        """Offer weights under a version; ``policy`` is a list that wraps the reference."""
        async with self._changed:
            self._policies[version] = policy[0]
            for old in [v for v in self._policies if v < version - self._keep]:
                del self._policies[old]
            self._changed.notify_all()

    async def policy(self, version: int) -> list[Any]:
        """The (wrapped) reference to a version's weights; waits until it is published."""
        async with self._changed:
            await self._changed.wait_for(lambda: version in self._policies)
            return [self._policies[version]]

    async def record(self, metrics: dict[str, float]) -> None:
        """Metrics of one finished round, ``round`` among them."""
        self._metrics.append(metrics)

    async def show(self, rounds: int, preview: bytes) -> None:
        """A preview (PNG) of the student after so many rounds."""
        self._previews.append((rounds, preview))

    async def previews(self) -> list[tuple[int, bytes]]:
        """The previews since this was last asked."""
        previews, self._previews = self._previews, []
        return previews

    async def metrics_after(self, count: int) -> list[dict[str, float]]:
        """All metrics but the first ``count``."""
        return self._metrics[count:]
