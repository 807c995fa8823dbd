"""The line that is drawn over a noisy one."""

from collections.abc import Sequence


def running_mean(values: Sequence[float], parts: int) -> list[float]:
    """Of each value and those before it, over ``1 / parts`` of the series.

    Nothing is looked at ahead, so a curve that is still being drawn does not change behind its end.
    """
    width = max(1, len(values) // parts)
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    starts = (max(0, i + 1 - width) for i in range(len(values)))
    return [(sums[i + 1] - sums[s]) / (i + 1 - s) for i, s in enumerate(starts)]
