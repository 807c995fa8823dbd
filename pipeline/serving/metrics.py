"""What the application counts, in Prometheus' format."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.5, 3, 6, 12, 30, 60)
_BATCHES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """Counters of one process, in a registry of their own (Ray's are served by Ray)."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "collectionlora_requests",
            "HTTP requests by route and status",
            ["route", "status"],
            registry=self.registry,
        )
        self.edits = Counter(
            "collectionlora_edits", "Pictures made, by effect", ["effect"], registry=self.registry
        )
        self.seconds = Histogram(
            "collectionlora_edit_seconds",
            "From a whole upload to its picture",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch = Histogram(
            "collectionlora_batch_size",
            "Pictures that shared a forward, seen by each of them",
            buckets=_BATCHES,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "collectionlora_waiting", "Edits under way or queued", registry=self.registry
        )

    def text(self) -> bytes:
        """All of them, as ``/metrics`` shows them."""
        return generate_latest(self.registry)
