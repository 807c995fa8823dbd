"""The one MLflow writer, and the functions that read the store.

A run must not be lost with its tracker. So every write is first a plain record (one line of
JSON); `Tracker._send` hands it to MLflow, and where that fails it goes to a journal instead, in
order, and is sent once the store answers again: a minute later, or at the next start. A run that
could not be opened has a `pending-` name until then, which later records may use like any other.

All runs share their metric names (`fidelity`, `fidelity_lo`, `fidelity_hi`, `<effect>/fidelity`,
`nfe`, ...) and image keys (`images/<effect>.png`), so that MLflow's Compare lines them up.
MLflow takes seconds to import, so it is imported where it is used.
"""

import json
import logging
import os
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import urlsplit

from pipeline import mirror
from pipeline.problems import disk_errors
from pipeline.storage import content_key, write_atomic

if TYPE_CHECKING:
    from mlflow import MlflowClient

Role = Literal["base", "teacher", "student", "baseline"]
Status = Literal["FINISHED", "FAILED", "KILLED"]
Record = dict[str, Any]

PARENT = "parent"
DEFAULT_STORE = "mlflow.db"
_LONGEST_VALUE = 500
_METRICS_AT_ONCE, _PARAMS_AT_ONCE = 1000, 100
_RETRY_SECONDS = 60.0
# Answers that no repetition will change; everything else may be a server that is away.
_REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS"}


@dataclass(frozen=True)
class RunRow:
    """A run as the store has it; `effect` is empty for a run on the whole collection."""

    run_id: str
    name: str
    role: str
    effect: str
    recipe_hash: str
    started: int
    metrics: dict[str, float]


class Tracker:
    """Writes one experiment. Make it with `open`; none of its methods fails with the store."""

    def __init__(self, uri: str, experiment: str, artifacts: str | None, journal: Path) -> None:
        self.uri, self.experiment = uri, experiment
        self._artifacts, self._journal = artifacts, journal
        self._client: MlflowClient | None = None
        self._ids: dict[str, str] = {}
        self._retry_at = 0.0
        self._warned: set[str] = set()

    @classmethod
    def open(
        cls, uri: str | None, experiment: str, output: Path, artifact_root: str | None = None
    ) -> Self:
        """The tracker of a run that writes to `output`; what its journal holds is sent now.

        The store is `uri`, or `sqlite:///<output>/mlflow.db`; artifacts of a store that is no
        server go to `artifact_root`, or `<output>/mlartifacts`. A server decides for itself.
        """
        output = output.resolve()
        output.mkdir(parents=True, exist_ok=True)
        uri = uri or default_uri(output)
        root = artifact_root or str(output / "mlartifacts")
        if "://" not in root:
            root = Path(root).resolve().as_uri()
        artifacts = None if uri.startswith(("http://", "https://")) else root
        tracker = cls(uri, experiment, artifacts, output / "mlflow_pending.jsonl")
        tracker._send(None)
        return tracker

    def parent(self, name: str, recipe_hash: str, params: Mapping[str, Any]) -> str:
        """The id of the collection's run: the one with this recipe's hash, or a new one."""
        tags = {"role": PARENT, "recipe_hash": recipe_hash}
        return self._open_run(name, None, tags, flatten(params))

    def child(
        self, parent_id: str, name: str, role: Role, effect: str | None, recipe_hash: str
    ) -> str:
        """The id of a run below a parent: the one with this name and tags, or a new one."""
        tags = {"role": role, "recipe_hash": recipe_hash} | ({"effect": effect} if effect else {})
        return self._open_run(name, parent_id, tags, {})

    def log_metrics(self, run_id: str, metrics: Mapping[str, float], step: int = 0) -> None:
        """Metrics of one step (a round), in as few requests as MLflow allows."""
        values = {key: float(value) for key, value in metrics.items()}
        now = int(time.time() * 1000)
        self._send({"call": "metrics", "run": run_id, "values": values, "step": step, "at": now})

    def log_artifact(self, run_id: str, path: Path, folder: str | None = None) -> None:
        """A file, or a folder's contents, under `folder` of the run's artifacts."""
        where = {"path": str(path.resolve()), "folder": folder}
        self._send({"call": "artifact", "run": run_id} | where)

    def log_images(self, run_id: str, paths: Iterable[Path]) -> None:
        """Pictures named `<effect>.png`, under the one key that all runs use for them."""
        for path in paths:
            self.log_artifact(run_id, path, "images")

    def log_step_image(self, run_id: str, path: Path, key: str, step: int) -> None:
        """A picture that MLflow shows by step, under the same key each time."""
        where = {"path": str(path.resolve()), "key": key, "step": step}
        self._send({"call": "image", "run": run_id} | where)

    def finish(self, run_id: str, status: Status = "FINISHED") -> None:
        """End a run; opening it again sets it running again."""
        end = {"status": status, "at": int(time.time() * 1000)}
        self._send({"call": "finish", "run": run_id} | end)

    def replay(self) -> None:
        """Send what the journal holds, in order. Raises what MLflow raises; nothing is lost."""
        if not self._journal.exists():
            return
        waiting = [_record(line) for line in self._journal.read_text("utf-8").splitlines()]
        for done, record in enumerate(waiting):
            try:
                self._deliver(record)
            except Exception:
                # Runs opened so far are known by their ids only here: write those down.
                rest = [json.dumps(self._resolved(one)) + "\n" for one in waiting[done:]]
                write_atomic(self._journal, "".join(rest).encode())
                raise
        self._journal.unlink()

    def _open_run(
        self, name: str, parent: str | None, tags: dict[str, str], params: dict[str, str]
    ) -> str:
        handle = f"pending-{content_key(self.experiment, name, parent, tags)}"
        what = {"name": name, "parent": parent, "tags": tags, "params": params}
        self._send({"call": "open", "run": handle} | what)
        return self._ids.get(handle, handle)

    def _send(self, record: Record | None) -> None:
        """Hand a record to MLflow behind those that wait, or let it wait with them.

        The one place where a failure goes no further: the tracker is away, the run is not.
        """
        started = time.monotonic()
        if record is not None and self._journal.exists() and started < self._retry_at:
            _append(self._journal, self._resolved(record))
            return
        try:
            self.replay()
            if record is not None:
                self._deliver(record)
        except Exception as error:
            if record is not None:
                _append(self._journal, self._resolved(record))
            # A server that lets requests time out must not get a share of every minute.
            now = time.monotonic()
            self._retry_at = now + max(_RETRY_SECONDS, 20 * (now - started))
            self._warn(
                "away",
                f"MLflow at {_shown(self.uri)} did not take a record ({self._why(error)}). "
                f"The run goes on; records wait in {self._journal} and are sent when it answers, "
                "at the latest by the next run. Remedy: start the server, or correct tracking.uri",
            )
        else:
            self._warned.discard("away")

    def _deliver(self, record: Record) -> None:
        """Perform a record; one that MLflow refuses for good is set aside, not tried for ever."""
        try:
            self._perform(self._resolved(record))
        except Exception as error:
            # Without its run nothing else can be sent, so opening one is never given up.
            if record["call"] == "open" or not _refused(error):
                raise
            aside = self._journal.with_name("mlflow_refused.jsonl")
            _append(aside, record | {"reason": self._why(error)})
            self._warn(
                "refused",
                f"MLflow refused a record ({self._why(error)}); the run goes on, and what is "
                f"refused is kept in {aside}. Remedy: see the reasons there",
            )

    def _perform(self, record: Record) -> None:
        from mlflow.entities import Metric
        from PIL import Image

        if self._client is None:
            self._client = client(self.uri)
        run, call = record["run"], record["call"]
        if call == "open":
            self._ids[run] = self._find_or_create(record)
        elif run.startswith("pending-"):
            raise LookupError(f"{run} was never opened")
        elif call == "metrics":
            at, step = record["at"], record["step"]
            metrics = [Metric(key, value, at, step) for key, value in record["values"].items()]
            for some in _chunks(metrics, _METRICS_AT_ONCE):
                self._client.log_batch(run, metrics=some)
        elif call == "artifact":
            path = Path(record["path"])
            log = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
            log(run, str(path), record["folder"])
        elif call == "image":
            with Image.open(record["path"]) as image:
                self._client.log_image(
                    run, image, key=record["key"], step=record["step"], synchronous=True
                )
        elif call == "finish":
            self._client.set_terminated(run, record["status"], record["at"])
        else:
            raise LookupError(f"no such call: {call}")

    def _find_or_create(self, record: Record) -> str:
        from mlflow.entities import Param, RunTag

        assert self._client is not None
        found = self._client.get_experiment_by_name(self.experiment)
        experiment = found.experiment_id if found else None
        if experiment is None:
            experiment = self._client.create_experiment(self.experiment, self._artifacts)
        name, parent, tags = record["name"], record["parent"], record["tags"]
        # A name may hold quotes, so runs are found by a key that cannot; a rerun of the
        # collection is the same run even under a new name.
        key = content_key(None if tags["role"] == PARENT else name, parent, tags)
        same = self._client.search_runs([experiment], f"tags.run_key = '{key}'", max_results=1)
        tags = tags | {"run_key": key} | ({"mlflow.parentRunId": parent} if parent else {})
        run = same[0] if same else self._client.create_run(experiment, tags=tags, run_name=name)
        if run.info.status != "RUNNING":
            self._client.update_run(run.info.run_id, "RUNNING")
        old, new = run.data.params, record["params"]
        params = [Param(k, v) for k, v in new.items() if k not in old]
        for some in _chunks(params, _PARAMS_AT_ONCE):
            self._client.log_batch(run.info.run_id, params=some)
        # MLflow's params are written once: what a rerun changed (pool sizes, say) is a tag.
        changed = [RunTag(f"rerun.{k}", v) for k, v in new.items() if old.get(k, v) != v]
        for some in _chunks(changed, _PARAMS_AT_ONCE):
            self._client.log_batch(run.info.run_id, tags=some)
        return str(run.info.run_id)

    def _resolved(self, record: Record) -> Record:
        """The record with the ids of runs in place of the pending names that now have one."""
        key = "parent" if record["call"] == "open" else "run"
        return record | {key: self._ids.get(record[key], record[key])}

    def _warn(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            print(f"warning: {text}.", file=sys.stderr)
            self._warned.add(kind)

    def _why(self, error: Exception) -> str:
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return text.replace(self.uri, _shown(self.uri))[:300]


def default_uri(output: Path) -> str:
    """The store of a run that names none: a SQLite file in its output folder."""
    return f"sqlite:///{output.resolve() / DEFAULT_STORE}"


def publish_store(output: Path) -> None:
    """The store that is in an output kept in S3 goes there: a copy of SQLite's, never half a write.

    Raises sqlite3.Error where it cannot be read.
    """
    path = output / DEFAULT_STORE
    if mirror.address(path) is None or not path.is_file():
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / DEFAULT_STORE
        with (
            closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
        mirror.sent(path, mirror.send(copy, path))


def client(uri: str) -> "MlflowClient":
    """A client that gives up in seconds, not MLflow's minutes; the user's environment wins."""
    for key, value in {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
    }.items():
        os.environ.setdefault(key, value)
    from mlflow import MlflowClient

    # Its word on each retry would come on top of our one warning.
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
    return MlflowClient(uri)


def flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text, as MLflow's params are."""
    flat: dict[str, str] = {}
    for key, value in params.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            text = json.dumps(value) if isinstance(value, list | tuple) else str(value)
            flat[f"{prefix}{key}"] = text[:_LONGEST_VALUE]
    return flat


def experiments(store: "MlflowClient") -> dict[str, str]:
    """Ids of all experiments by name."""
    return {e.name: e.experiment_id for e in _paged(store.search_experiments)}


def runs(store: "MlflowClient", experiment_ids: list[str]) -> list[RunRow]:
    """The children (base, teachers, students, baselines), latest first."""
    rows = [
        RunRow(
            run_id=run.info.run_id,
            name=run.info.run_name or "",
            role=run.data.tags["role"],
            effect=run.data.tags.get("effect", ""),
            recipe_hash=run.data.tags.get("recipe_hash", ""),
            started=int(run.info.start_time or 0),
            metrics=dict(run.data.metrics),
        )
        for run in _paged(lambda **page: store.search_runs(experiment_ids, **page))
        if run.data.tags.get("role", PARENT) != PARENT
    ]
    return sorted(rows, key=lambda row: -row.started)


def history(store: "MlflowClient", run_id: str, key: str) -> list[tuple[int, float]]:
    """(step, value) of a metric by step; of a step logged twice (a resumed run) the later one."""
    found = sorted(store.get_metric_history(run_id, key), key=lambda m: (m.step, m.timestamp))
    return sorted({m.step: m.value for m in found}.items())


def _refused(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError | LookupError):
        return True
    return getattr(error, "error_code", None) in _REFUSALS


def _record(line: str) -> Record:
    """A line of the journal; one torn by a crash becomes a record that is set aside."""
    try:
        record: Record = json.loads(line)
    except ValueError:
        return {"call": "torn line", "run": "", "text": line}
    return record


def _append(path: Path, record: Record) -> None:
    with disk_errors(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _shown(uri: str) -> str:
    """An address without the password that it may hold."""
    login = urlsplit(uri).netloc.rpartition("@")[0]
    return uri.replace(f"{login}@", "***@") if login else uri


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _paged(fetch: Any) -> Iterator[Any]:
    page = fetch()
    yield from page
    while page.token:
        page = fetch(page_token=page.token)
        yield from page
