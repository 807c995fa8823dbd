"""The driver's side of watching: warnings to the log, previews to disk, curves at the end."""

import sys
from pathlib import Path

from tqdm import tqdm

from pipeline.config_watch import WatchSettings
from pipeline.distill.alarms import Alarm, Alarms
from pipeline.storage import write_atomic


class Watching:
    """Hears every round and every preview of a run that writes to ``output``."""

    def __init__(self, settings: WatchSettings, output: Path) -> None:
        self.alarms = Alarms(settings.patience, settings.tolerance)
        self.output = output

    @property
    def log(self) -> Path:
        """All warnings of the run, a line each."""
        return self.output / "warnings.log"

    def hear(self, metrics: dict[str, float]) -> list[Alarm]:
        """Write what a round gives cause for to the terminal and to :attr:`log`."""
        alarms = self.alarms.hear(metrics)
        for alarm in alarms:
            line = f"round {alarm.round}: {alarm.text}"
            tqdm.write(f"warning: {line}", file=sys.stderr)
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("a") as file:
                file.write(line + "\n")
        return alarms

    def save(self, rounds: int, preview: bytes) -> Path:
        """Write a preview; the same rounds again (a resumed run) replace theirs."""
        return write_atomic(self.output / "previews" / f"round_{rounds:06d}.png", preview)
