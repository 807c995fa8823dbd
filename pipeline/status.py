"""``collectionlora status``: how a run stands, from its output folder alone.

Nothing is asked of the run itself, of Ray or of MLflow: it may be on another machine, or over.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from actors.run_place import RunPlace, latest_run
from pipeline import mirror
from pipeline.config import load_recipe
from pipeline.places import Places
from pipeline.problems import InputError, Problem
from pipeline.progress import BEAT_SECONDS, FILE, Progress, read_progress, stored
from pipeline.stages.distill import History

RECENT = 50
# Without a sign of life for so long a run is taken to be over: some beats may be late.
SILENT_SECONDS = 4 * BEAT_SECONDS


@dataclass(frozen=True)
class Status:
    """How a run stands. Shares are of recent rounds' time; ``eta_seconds`` is of the stage.

    state: ``running``, ``finished``, ``failed``, or ``stopped`` (no sign of life, no end).
    """

    name: str
    recipe_hash: str
    output: str
    state: str
    stage: str
    done: int
    total: int
    eta_seconds: float | None
    alive_seconds_ago: float
    where: str
    error: str
    round: int | None = None
    rounds: int | None = None
    checkpoint_round: int | None = None
    losses: dict[str, float] | None = None
    rounds_per_second: float | None = None
    student_wait_share: float | None = None
    teacher_busy_share: float | None = None
    policy_lag: float | None = None
    workers: int | None = None
    workers_asked: int | dict[str, float] | None = None

    def to_json(self) -> str:
        """All fields, as JSON."""
        return json.dumps(asdict(self), indent=1)


def read_status(run: str | Path, now: float | None = None) -> Status:
    """The status of a run: its output (a folder, or an address in S3), or the recipe that names it.

    Raises:
        InputError: there is no such folder or recipe, or no run has been there.
    """
    text, now = str(run), time.time() if now is None else now
    is_output = "://" in text or Path(text).is_dir()
    places = Places.of(text if is_output else load_recipe(text).output)
    progress = read_progress(places)
    if progress is None:
        there = mirror.address(places.output) or places.output.is_dir()
        what = f"no run has been here: no {FILE}" if there else "no such folder"
        remedy = "give a run's output folder or its recipe; a run writes it when it begins"
        raise InputError([Problem(_shown(places), "", None, what, remedy)])
    return _status(places, progress, now)


def describe(status: Status) -> str:
    """For a person: some lines."""
    s = status
    share = f", {100 * s.done / s.total:.0f} %" if s.total else ""
    count = f"{s.done} of {s.total}{share}" if s.total else ""
    lines = [f"{s.name} ({s.recipe_hash}) in {s.output}: {s.state}"]
    lines += [f"stage     {s.stage}  {count}".rstrip()]
    if s.eta_seconds is not None and s.state == "running":
        lines.append(f"ETA       {_clock(s.eta_seconds)} to the end of this stage")
    if s.round is not None:
        at = "none yet" if s.checkpoint_round is None else f"round {s.checkpoint_round}"
        lines.append(f"round     {s.round} of {s.rounds}; checkpoint: {at}")
    if s.losses:
        lines.append("loss      " + "  ".join(f"{k} {v:.4f}" for k, v in s.losses.items()))
    if s.rounds_per_second is not None:
        busy = s.teacher_busy_share
        lines.append(
            f"speed     {s.rounds_per_second:.2f} rounds/s; student waits "
            f"{100 * (s.student_wait_share or 0):.0f} % of the time"
            + ("" if busy is None else f", teachers are busy {100 * busy:.0f} %")
            + ("" if s.policy_lag is None else f"; policy lag {s.policy_lag:.0f}")
        )
    if s.workers is not None:
        plural = "" if s.workers == 1 else "s"
        lines.append(f"student   {s.workers} worker{plural}{_of_range(s.workers_asked)}")
    lines.append(f"alive     {_clock(s.alive_seconds_ago)} ago, {s.where}")
    if s.error:
        lines.append(f"error     {s.error}")
    if s.state in ("stopped", "failed"):
        lines.append("remedy    start the same recipe again: it goes on from here")
    return "\n".join(lines)


def _status(places: Places, progress: Progress, now: float) -> Status:
    silent = now - progress.alive
    state = progress.state
    if state == "running" and silent > SILENT_SECONDS:
        state = "stopped"
    # Without a key it has not come to its rounds, or is of a version whose rows have none either.
    rows = History(places.history, progress.run_key).load()
    done, per_second = progress.ready, 0.0
    rounds = int(progress.recipe["distill"]["rounds"])
    recent = rows[-RECENT:]
    spent = sum(row["seconds_update"] + row["seconds_wait"] for row in recent)
    if progress.stage == "distill":
        done = int(rows[-1]["round"]) + 1 if rows else 0
        per_second = len(recent) / spent if spent else 0.0
    elif progress.total:
        came = stored(progress.stage, places) - progress.stored
        done += came
        per_second = came / max(progress.alive - progress.stage_began, 1e-9)
    if state == "finished":
        done = progress.total
    done = min(done, progress.total) if progress.total else done
    left = max(progress.total - done, 0)
    status = Status(
        name=str(progress.recipe["name"]),
        recipe_hash=progress.recipe_hash,
        output=_shown(places),
        state=state,
        stage=progress.stage,
        done=done,
        total=progress.total,
        eta_seconds=left / per_second if per_second > 0 else (0.0 if not left else None),
        alive_seconds_ago=silent,
        where=f"process {progress.pid} on {progress.host}",
        error=progress.error,
    )
    if not rows:
        return status
    last, place = rows[-1], latest_run(places.training)
    if progress.run_key:
        place = RunPlace(places.training, progress.run_key)
    busy = [row["teacher_busy_share"] for row in recent if "teacher_busy_share" in row]
    return Status(
        **{
            **asdict(status),
            "round": int(last["round"]) + 1,
            "rounds": rounds,
            "checkpoint_round": (place.checkpointed_round() or None) if place else None,
            "losses": {k: v for k, v in last.items() if k.startswith("loss_")},
            "rounds_per_second": len(recent) / spent if spent else None,
            "student_wait_share": sum(r["seconds_wait"] for r in recent) / spent if spent else None,
            "teacher_busy_share": float(np.mean(busy)) if busy else None,
            "policy_lag": last.get("policy_lag"),
            "workers": int(last["workers"]) if "workers" in last else None,
            "workers_asked": progress.recipe["cluster"]["student_group"]["workers"],
        }
    )


def _shown(places: Places) -> str:
    return mirror.address(places.output) or str(places.output)


def _of_range(asked: int | dict[str, float] | None) -> str:
    if not isinstance(asked, dict):
        return ""
    return f" of {asked['min']:.0f} to {asked['max']:.0f}"


def _clock(seconds: float) -> str:
    whole = round(max(seconds, 0))
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {whole % 60:02} s"
