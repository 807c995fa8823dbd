"""Real servers of a test's own on loopback: a Ray head with a token, MLflow on HTTP."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray.util

from tests.s3_server import free_port, wait_for

BIN = Path(sys.executable).parent


class MlflowServer:
    """MLflow on HTTP over a SQLite file; it can be killed and started again at its address."""

    def __init__(self, folder: Path, artifacts: str, environment: Mapping[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._port, self._log = free_port(), folder / "mlflow.log"
        self.uri = f"http://127.0.0.1:{self._port}"
        # Its job runner is nine more processes, of which nothing here makes use.
        quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        self._environment = dict(environment) | quiet
        self._command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        self._command += ["--port", str(self._port), "--workers", "1"]
        self._command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        self._command += ["--artifacts-destination", artifacts]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            # A group of its own: uvicorn's workers are to die with it.
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        wait_for(self._port, self._process, self._log)

    def kill(self) -> None:
        """SIGKILL to it and to its workers."""
        assert self._process is not None
        os.killpg(self._process.pid, 9)
        self._process.wait(30)


@contextmanager
def mlflow_server(
    folder: Path, artifacts: str, environment: Mapping[str, str]
) -> Iterator[MlflowServer]:
    """A server for the block; ``artifacts``: where it keeps them, a folder or an S3 address."""
    server = MlflowServer(folder, artifacts, environment)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@dataclass(frozen=True)
class Head:
    """A Ray head: the environment of its users (its token is in it), its addresses and folder."""

    environment: dict[str, str]
    dashboard: str
    gcs: str
    folder: Path

    def processes(self) -> list[psutil.Process]:
        """All of this cluster's processes on this machine, and nobody else's."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("RAY_TMPDIR") == str(self.folder):
                    found.append(process)
        return found


@contextmanager
def ray_head(
    environment: Mapping[str, str],
    *flags: str,
    log: Path,
    teachers: Mapping[str, Any] | None = None,
) -> Iterator[Head]:
    """A head by ``ray start`` with a token, from a folder of its own.

    teachers: resources of a node that Ray's fake autoscaler may start, up to three of them.
    """
    # A socket's path is at most 107 characters long.
    folder = Path(tempfile.mkdtemp(prefix="cl-", dir="/tmp"))
    dashboard, port = free_port(), free_port()
    mine = dict(environment) | {
        "PATH": f"{BIN}:{environment['PATH']}",
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    }
    mine.pop("RAY_ADDRESS", None)
    head = Head(
        mine,
        f"http://127.0.0.1:{dashboard}",
        f"{ray.util.get_node_ip_address()}:{port}",
        folder,
    )
    command = [str(BIN / "ray"), "start", "--head", "--block", f"--port={port}"]
    command += [f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}"]
    command += ["--dashboard-agent-listen-port=0", "--object-store-memory=300000000"]
    command += ["--disable-usage-stats", *flags]
    if teachers is not None:
        (folder / "autoscaling.json").write_text(json.dumps(_autoscaling(head.gcs, teachers)))
        command.append(f"--autoscaling-config={folder / 'autoscaling.json'}")
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=mine, stdout=file, stderr=file)
    try:
        _answers(f"{head.dashboard}/api/version", mine["RAY_AUTH_TOKEN"], process, log)
        yield head
    finally:
        process.terminate()
        process.wait(60)
        for left in head.processes():
            with suppress(psutil.Error):
                left.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _autoscaling(gcs: str, teachers: Mapping[str, Any]) -> dict[str, Any]:
    """A whole configuration of Ray's fake provider; the wheel lacks its example."""
    provider = {"type": "fake_multinode", "gcs_address": gcs, "disable_node_updaters": True}
    # All have this machine's address: by it the autoscaler would take none for one of its own.
    provider |= {"disable_launch_config_check": True, "use_node_id_as_ip": True}
    kinds = {
        "ray.head.default": {"resources": {}, "node_config": {}, "max_workers": 0},
        "teacher": {
            "resources": dict(teachers),
            "node_config": {},
            "min_workers": 0,
            "max_workers": 3,
        },
    }
    commands = ("head_setup_commands", "worker_setup_commands", "setup_commands")
    commands += ("initialization_commands", "head_start_ray_commands", "worker_start_ray_commands")
    return {
        "cluster_name": "fake",
        "max_workers": 3,
        "upscaling_speed": 10.0,
        "idle_timeout_minutes": 0.1,
        "docker": {},
        "provider": provider,
        "auth": {},
        "available_node_types": kinds,
        "head_node_type": "ray.head.default",
        "file_mounts": {},
        "cluster_synced_files": [],
        "file_mounts_sync_continuously": False,
        "rsync_exclude": [],
        "rsync_filter": [],
        **{name: [] for name in commands},
    }


def _answers(
    url: str, token: str, process: "subprocess.Popen[Any]", log: Path, seconds: float = 180
) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise AssertionError(f"{url} does not answer: {log.read_text()}")
