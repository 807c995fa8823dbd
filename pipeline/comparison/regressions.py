"""What a student does worse than an earlier one: by metric, over all effects and by effect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pipeline.compare import value_of
from pipeline.comparison.gather import Column
from pipeline.evaluation.report import METRICS

Verdict = Literal["regression", "worse", "same or better"]


@dataclass(frozen=True)
class Difference:
    """One metric of a student against the earlier one's; ``effect`` empty: over all of them."""

    effect: str
    metric: str
    earlier: float
    now: float
    verdict: Verdict

    @property
    def change(self) -> float:
        """By how much it changed."""
        return self.now - self.earlier


def higher_is_better(metric: str) -> bool:
    """Which way a metric is good, as its heading's arrow says."""
    return METRICS[metric][0].endswith("↑")


def differences(student: Column, earlier: Column) -> list[Difference]:
    """Every metric that both have. Worse, with intervals that do not meet, is a regression.

    Intervals that meet can hide a true loss of an effect: then it is called worse, no more.
    """
    effects = ["", *(e for e in earlier.effects if e in student.effects)]
    found = []
    for effect in effects:
        for metric in METRICS:
            key = f"{effect}/{metric}" if effect else metric
            now, then = value_of(student.metrics, key), value_of(earlier.metrics, key)
            if now is not None and then is not None:
                verdict = judge(metric, now, then)
                found.append(Difference(effect, metric, then[0], now[0], verdict))
    return found


def judge(
    metric: str, now: tuple[float, float, float], then: tuple[float, float, float]
) -> Verdict:
    """The verdict on (mean, low, high) against the earlier one's."""
    sign = 1 if higher_is_better(metric) else -1
    if sign * now[0] >= sign * then[0]:
        return "same or better"
    apart = now[2] < then[1] if sign > 0 else now[1] > then[2]
    return "regression" if apart else "worse"


def regressions(found: Sequence[Difference]) -> list[Difference]:
    """Those that are regressions."""
    return [d for d in found if d.verdict == "regression"]
