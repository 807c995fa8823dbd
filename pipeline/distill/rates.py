"""Learning-rate schedules by round: no state, so that a resumed run needs none."""

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class RateSettings:
    """Peak rate, linear warm-up in rounds, then constant or a cosine to a hundredth."""

    peak: float
    warmup: int
    schedule: Literal["constant", "cosine"]


def rate_at(settings: RateSettings, round_index: int, rounds: int) -> float:
    """The learning rate of a round (0-based) of ``rounds``."""
    warm = min(1.0, (round_index + 1) / (settings.warmup + 1))
    if settings.schedule == "constant":
        return settings.peak * warm
    progress = round_index / max(1, rounds - 1)
    return settings.peak * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))
