"""Where Ray Train keeps a run, and making sure that what it will resume from is whole.

Ray Train lists its checkpoints in a snapshot file, which it writes in place: a kill can leave half
of it, or a folder that is not listed. A checkpoint's own manifest says whether it is whole, and
its ``state.json`` the round, so the list can always be made again from the folders.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from pipeline import mirror, object_store
from pipeline.distill.names import SCORE, STATE_FILE
from pipeline.problems import StorageError
from pipeline.storage import folder_is_whole, write_atomic

SNAPSHOT = "checkpoint_manager_snapshot.json"
STUDENT_FOLDER = "student"
_PREFIX = "checkpoint_"
# What was reported with a checkpoint: its round and, of a watched run, its validation score.
Said = dict[str, float]


@dataclass(frozen=True)
class RunPlace:
    """Ray Train keeps a run in ``storage/name``; the same place resumes the same run.

    Of an output in S3, ``storage`` is the path in the mirror, and Ray Train itself reads and
    writes there through pyarrow.
    """

    storage: Path
    name: str

    @property
    def folder(self) -> Path:
        return self.storage / self.name

    def ray_storage(self) -> dict[str, Any]:
        """``storage_path`` and ``storage_filesystem`` of Ray Train's RunConfig."""
        remote = mirror.remote_of(self.storage)
        if remote is None:
            return {"storage_path": str(self.storage.resolve())}
        return {
            "storage_path": f"{remote.bucket}/{remote.key}",
            "storage_filesystem": object_store.arrow_filesystem(),
        }

    def checkpointed_round(self) -> int:
        """The next round according to the checkpoint that Ray Train will restore; 0 if none."""
        latest = self._latest()
        return int(latest["metrics"]["round"]) if latest else 0

    def latest_checkpoint(self) -> Path | None:
        """The student folder of the checkpoint that Ray Train will restore."""
        latest = self._latest()
        if latest is None:
            return None
        folder = self.folder / str(latest["checkpoint_dir_name"]) / STUDENT_FOLDER
        mirror.pull(folder)
        return folder

    def best_checkpoint(self) -> Path:
        """The student folder of the listed checkpoint with the least validation score."""
        snapshot = self._snapshot()
        if snapshot is None:
            what = "no list of the run's checkpoints; start the same recipe again"
            raise StorageError(f"{self.folder / SNAPSHOT}: {what}")
        listed = snapshot["checkpoint_results"]
        best = min(listed, key=lambda r: (r["metrics"][SCORE], r["metrics"]["round"]))
        folder = self.folder / str(best["checkpoint_dir_name"]) / STUDENT_FOLDER
        mirror.pull(folder)
        return folder

    def heal(self) -> None:
        """Let the snapshot list what is there, up to the newest checkpoint that is whole.

        Every byte of that one is read; older ones are looked at when they are needed. Without a
        whole one the run begins at its first round.
        """
        names, good = self._checkpoints(), dict[str, Said]()
        while names and not good:
            newest = names.pop()
            if (found := self._whole(newest)) is None:
                print(f"{self.folder / newest}: damaged checkpoint; the run goes on without it")
                continue
            older = {name: self._said(name) for name in names}
            good = {name: said for name, said in older.items() if said is not None}
            good[newest] = found
        if self._listed() != good:
            self._write_snapshot(good)

    def _write_snapshot(self, good: dict[str, Said]) -> None:
        path = self.folder / SNAPSHOT
        if not good:
            mirror.remove(path)
            return
        names = list(good)
        results = [
            {"version": 0, "checkpoint_dir_name": name, "metrics": good[name]} for name in names
        ]
        # As Ray Train has them: by time, or by score with the best last.
        by_score = sorted(range(len(names)), key=lambda i: -good[names[i]].get(SCORE, 0.0))
        # The fields of Ray Train's own, as of the version that it will be read by.
        content = {
            "ray_version": ray.__version__,
            "checkpoint_results": [results[i] for i in by_score],
            "checkpoint_report_indices": by_score,
            "latest_checkpoint_result": results[-1],
            "pending_training_results": [],
            "pending_validation_specs": [],
            "current_report_index": len(results),
            "validated_checkpoint_dir_names": [],
            "timed_out_validation_checkpoint_dir_names": [],
            "failed_validation_checkpoint_dir_names": [],
        }
        write_atomic(path, json.dumps(content).encode())

    def _checkpoints(self) -> list[str]:
        """The names of all checkpoint folders, by time, which their names begin with."""
        remote = mirror.remote_of(self.folder)
        if remote is None:
            found = [p.name for p in self.folder.iterdir()] if self.folder.is_dir() else []
        else:
            entries = object_store.listing(remote.bucket, remote.key)
            found = [e.key[len(remote.key) + 1 :].partition("/")[0] for e in entries]
        # The list's own name begins like theirs.
        return sorted({n for n in found if n.startswith(_PREFIX) and n != SNAPSHOT})

    def _whole(self, name: str) -> Said | None:
        """What a checkpoint says of itself, None if it is not whole."""
        student = self.folder / name / STUDENT_FOLDER
        mirror.pull(student)
        try:
            return self._said(name) if folder_is_whole(student, contents=True) else None
        finally:
            if mirror.remote_of(student) is not None:
                shutil.rmtree(student, ignore_errors=True)  # gigabytes that the workers fetch

    def _said(self, name: str) -> Said | None:
        path = self.folder / name / STUDENT_FOLDER / STATE_FILE
        try:
            state = json.loads(path.read_bytes()) if mirror.fetch(path) else {}
            score = state.get("score")
            return {"round": int(state["round"])} | ({} if score is None else {SCORE: float(score)})
        except (ValueError, LookupError, TypeError, AttributeError):
            return None

    def _listed(self) -> dict[str, Said] | None:
        """What each checkpoint said, as the snapshot has it; None where it cannot be read."""
        path = self.folder / SNAPSHOT
        if not mirror.fetch(path):
            return {}
        try:
            found = json.loads(path.read_bytes())
            rows = [*found["checkpoint_results"], found["latest_checkpoint_result"]]
            listed = {r["checkpoint_dir_name"]: dict(r["metrics"]) for r in rows}
            whole = found["ray_version"] == ray.__version__ and len(listed) == len(rows) - 1
            return listed if whole else None
        except (ValueError, LookupError, TypeError):
            return None

    def _latest(self) -> dict[str, Any] | None:
        snapshot = self._snapshot()
        return snapshot["latest_checkpoint_result"] if snapshot else None

    def _snapshot(self) -> dict[str, Any] | None:
        """The list as Ray Train wrote it last, wherever; None without one."""
        path = self.folder / SNAPSHOT
        if not mirror.fetch(path):
            return None
        snapshot: dict[str, Any] = json.loads(path.read_bytes())
        return snapshot


def latest_run(storage: Path) -> RunPlace | None:
    """Of the runs in a storage, the one that wrote a checkpoint last; None if none did."""
    remote = mirror.remote_of(storage)
    if remote is not None:
        keys = [e.key for e in object_store.listing(remote.bucket, remote.key)]
        names = {k.split("/")[-2] for k in keys if k.endswith(f"/{SNAPSHOT}")}
        runs = [RunPlace(storage, name) for name in sorted(names)]
        # Checkpoints' names begin with the time.
        return max(runs, key=lambda run: run._checkpoints()[-1:], default=None)
    found = sorted(storage.glob(f"*/{SNAPSHOT}"), key=lambda path: path.stat().st_mtime)
    return RunPlace(storage, found[-1].parent.name) if found else None
