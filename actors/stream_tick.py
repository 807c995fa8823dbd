"""A stream that hands rounds on at once: Ray Data's executor looks every 100 ms on its own."""

from typing import Any

from ray.data import DataContext
from ray.data._internal.execution import streaming_executor_state
from ray.data._internal.execution.execution_callback import ExecutionCallback

TICK_SECONDS = 0.01


class ShortTick(ExecutionCallback):  # type: ignore[misc]
    """Shortens the executor's wait in the process that runs it (which is Ray Data's own actor).

    The executor waits for *all* running tasks or for its tick, whichever comes first. With several
    teachers all never come at once, so a finished rollout lies there for 50 ms on average: with
    rounds of 300 ms that is a sixth of the student's time.
    """

    def before_execution_starts(self, executor: Any) -> None:
        """Ray Data calls this once a stream."""
        assert hasattr(streaming_executor_state, "WAIT_FOR_TASK_COMPLETION_TIMEOUT_S")
        streaming_executor_state.WAIT_FOR_TASK_COMPLETION_TIMEOUT_S = TICK_SECONDS


def hand_on_at_once() -> None:
    """For streams that this process makes from now on."""
    chosen = DataContext.get_current().custom_execution_callback_classes
    if ShortTick not in chosen:
        chosen.append(ShortTick)
