"""What an update is made with: plain numbers, at hand without torch."""

from dataclasses import dataclass

from pipeline.distill.rates import RateSettings


@dataclass(frozen=True)
class UpdateSettings:
    """Rates, weights and bounds of the update; see ``config_training.DistillSettings``.

    scale_ta: of TA-FM's robust loss (None: the plain one); see ``losses.robust``.
    micro_batch: slots that one forward with gradients takes (None: all of a worker's).
    """

    rounds: int
    student_rate: RateSettings
    fake_rate: RateSettings
    betas: tuple[float, float]
    grad_clip: float
    ema: float
    weight_bs: float
    weight_ts: float
    weight_ta: float
    scale_ta: float | None = None
    micro_batch: int | None = None
