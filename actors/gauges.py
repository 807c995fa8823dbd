"""A run's metrics at Ray's Prometheus endpoint, as ``ray_collectionlora_*``."""

from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

# The rounds' own metric, and what a person reads of it in Prometheus.
SHOWN = {
    "round": "The last finished round",
    "rounds_per_second": "Rounds a second, over the last 32",
    "student_wait_share": "Share of time that the student waits for rollouts, over the last 32",
    "teacher_busy_share": "Share of time that teachers compute, over the last 32 rollouts",
    "queue": "Rollouts that are made and wait for the student",
    "policy_lag": "Versions between the rollout's policy and the student",
    "loss_fake": "Flow-matching loss of the fake score",
    "loss_ta_fm": "Trajectory anchoring loss",
    "gpu_memory_student": "GiB of GPU memory at most, student",
    "gpu_memory_teacher": "GiB of GPU memory at most, teachers",
}


class Gauges:
    """Gauges of one run, which is their tag; forwards are counted a sample."""

    def __init__(self, run: str) -> None:
        self._gauges = {
            name: Gauge(f"collectionlora_{name}", text, tag_keys=("run",))
            for name, text in SHOWN.items()
        }
        self._forwards = Counter(
            "collectionlora_forwards", "Transformer forwards a sample", tag_keys=("run", "side")
        )
        self._run = run

    def show(self, row: Mapping[str, float]) -> None:
        """Set what a finished round says."""
        for name, gauge in self._gauges.items():
            if name in row:
                gauge.set(row[name], {"run": self._run})
        for side in ("student_group", "teacher_pool"):
            if row.get(f"forwards_{side}"):
                self._forwards.inc(row[f"forwards_{side}"], {"run": self._run, "side": side})
