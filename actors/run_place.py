"""Where Ray Train keeps a run, and how far its latest checkpoint there is. Needs no Ray."""

import json
from dataclasses import dataclass
from pathlib import Path

SNAPSHOT = "checkpoint_manager_snapshot.json"


@dataclass(frozen=True)
class RunPlace:
    """Where Ray Train keeps a run: ``storage/name``; the same place resumes the same run."""

    storage: Path
    name: str

    def checkpointed_round(self) -> int:
        """The next round according to the checkpoint that Ray Train will restore; 0 if none."""
        snapshot = self.storage / self.name / SNAPSHOT
        if not snapshot.exists():
            return 0
        latest = json.loads(snapshot.read_text()).get("latest_checkpoint_result")
        return int(latest["metrics"]["round"]) if latest else 0

    def latest_checkpoint(self) -> Path | None:
        """The student folder of the checkpoint that Ray Train will restore."""
        snapshot = self.storage / self.name / SNAPSHOT
        if not snapshot.exists():
            return None
        latest = json.loads(snapshot.read_text()).get("latest_checkpoint_result")
        if not latest:
            return None
        folder: str = latest["checkpoint_dir_name"]
        return self.storage / self.name / folder / "student"


def latest_run(storage: Path) -> RunPlace | None:
    """Of the runs in a storage, the one that wrote a checkpoint last; None if none did."""
    found = sorted(storage.glob(f"*/{SNAPSHOT}"), key=lambda path: path.stat().st_mtime)
    return RunPlace(storage, found[-1].parent.name) if found else None
