"""Warnings of a training that goes wrong, from the rounds' metrics alone: what, and what to do.

Few-step distillation improves, then may collapse. The signs, in the order in which they come:
the student's latents leave the teachers' range; the fake score no longer follows; losses are no
numbers; the validation score worsens look after look.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import fmean, median

from pipeline.distill.names import SCORE
from pipeline.distill.watch import best_of

_OUTSIDE = 0.03
_CONTRAST = (0.5, 1.6)
_LAG_TIMES = 4.0
_RECENT, _BEFORE = 5, 50


@dataclass(frozen=True)
class Alarm:
    """One thing that is wrong since a round, and its remedy."""

    kind: str
    round: int
    text: str


@dataclass
class Alarms:
    """Feed it every round's metrics; it answers with what has newly gone wrong.

    A kind of warning is given once, and again only after its sign was gone.
    """

    patience: int
    tolerance: float
    scores: dict[int, float] = field(default_factory=dict)
    _on: set[str] = field(default_factory=set)
    _outside: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT))
    _fake: deque[float] = field(default_factory=lambda: deque(maxlen=_RECENT + _BEFORE))

    def hear(self, metrics: Mapping[str, float]) -> list[Alarm]:
        """The warnings that a round's metrics give cause for."""
        round_index = int(metrics["round"])
        signs = {
            "not finite": self._not_finite(metrics),
            "out of range": self._out_of_range(metrics),
            "fake score behind": self._fake_behind(metrics),
        }
        if SCORE in metrics:
            self.scores[round_index] = metrics[SCORE]
            signs["collapse"] = self._collapse()
            signs["saturation"] = self._saturation(metrics)
        new = [
            Alarm(kind, round_index, text)
            for kind, text in signs.items()
            if text is not None and kind not in self._on
        ]
        for kind, text in signs.items():
            (self._on.discard if text is None else self._on.add)(kind)
        return new

    def _not_finite(self, metrics: Mapping[str, float]) -> str | None:
        bad = sorted(key for key, value in metrics.items() if not math.isfinite(value))
        if not bad:
            return None
        return (
            f"{', '.join(bad[:3])} no longer finite: the student is lost from here on. Stop; lower "
            "distill.learning_rate and distill.grad_clip, or use model.dtype float32"
        )

    def _out_of_range(self, metrics: Mapping[str, float]) -> str | None:
        if "range/outside" not in metrics:
            return None
        self._outside.append(metrics["range/outside"])
        share = fmean(self._outside)
        if len(self._outside) < _RECENT or share <= _OUTSIDE:
            return None
        return (
            f"{share:.0%} of the student's latents lie outside the range of its teachers': it "
            "saturates. Lower distill.learning_rate or distill.guidance; if it is early, raise "
            "distill.warmup"
        )

    def _fake_behind(self, metrics: Mapping[str, float]) -> str | None:
        self._fake.append(metrics["loss_fake"])
        values = [v for v in self._fake if math.isfinite(v)]
        if len(values) < _RECENT + _BEFORE:
            return None
        now, usual = fmean(values[-_RECENT:]), median(values[:-_RECENT])
        if now <= _LAG_TIMES * usual:
            return None
        return (
            f"the fake score's loss is {now / usual:.0f} times what it was: it no longer follows "
            "the student, whose gradient is then noise. Lower distill.learning_rate, or raise "
            "distill.fake_learning_rate or distill.fake_updates"
        )

    def _collapse(self) -> str | None:
        best = best_of(self.scores)
        since = [score for r, score in sorted(self.scores.items()) if r > best]
        bound = self.scores[best] * (1 + self.tolerance)
        # "Not better than", so that NaN counts as worse.
        worse = [not score <= bound for score in since]
        if len(worse) < self.patience or not all(worse[-self.patience :]):
            return None
        return (
            f"collapse: the validation score is {since[-1]:.4f} and was {self.scores[best]:.4f} "
            f"after round {best}, whose checkpoint is kept. Stop here (watch.keep: best makes it "
            "the student), or run again with a lower distill.learning_rate, schedule: cosine, or "
            "fewer rounds"
        )

    def _saturation(self, metrics: Mapping[str, float]) -> str | None:
        contrast = metrics["validation/contrast"]
        if _CONTRAST[0] <= contrast <= _CONTRAST[1]:
            return None
        what = "faded" if contrast < 1 else "oversaturated"
        return (
            f"{what}: the student's pictures have {contrast:.2f} times their teachers' contrast. "
            "Lower distill.guidance if oversaturated; raise distill.losses.ta_fm if faded"
        )
