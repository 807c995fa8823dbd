"""The MLflow server as the manifest starts it: who gets in, and by which host name."""

import base64
import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.kustomize import build
from tests.cluster.test_manifests import CLUSTER

pytestmark = pytest.mark.slow
SECRETS = {"admin-password": "a-long-admin-password", "flask-secret-key": "0" * 32}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The server's port; its command, settings and files are those of overlays/kind."""
    pytest.importorskip("flask_wtf", reason="mlflow[auth] is not installed")
    folder, port = tmp_path_factory.mktemp("mlflow"), free_port()
    data = {(r.kind, r.name): r.data for r in build(CLUSTER / "overlays/kind", CLUSTER)}
    pod = data["Deployment", "mlflow"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    users = data["ConfigMap", "mlflow-auth"]["data"]["basic_auth.ini"]
    (folder / "basic_auth.ini").write_text(users.replace("/data/", f"{folder}/"))
    settings = dict(data["ConfigMap", "mlflow-settings"]["data"])
    for variable in container["env"]:
        reference = variable.get("valueFrom", {}).get("secretKeyRef")
        settings[variable["name"]] = SECRETS[reference["key"]] if reference else variable["value"]
    settings["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "basic_auth.ini")
    text = "\n".join(container["command"] + container["args"]).replace("/data/", f"{folder}/")
    text = re.sub(r"\$\((\w+)\)", lambda m: settings[m[1]].replace("/data", str(folder)), text)
    command = text.replace("--port=5000", f"--port={port}").split("\n")
    command[0] = str(Path(sys.executable).parent / command[0])
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(command, env=os.environ | settings, stdout=log, stderr=log)
    try:
        for _ in range(600):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, (folder / "log.txt").read_text()
            time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def status(port: int, password: str | None, host: str = "localhost:5000") -> int:
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    headers = {"Host": host}
    if password is not None:
        login = base64.b64encode(f"admin:{password}".encode()).decode()
        headers["Authorization"] = f"Basic {login}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_only_the_password_opens(server: int) -> None:
    assert status(server, None) == 401
    assert status(server, "password1234") == 401
    assert status(server, SECRETS["admin-password"]) == 200


def test_only_the_named_hosts_are_served(server: int) -> None:
    for host in ("mlflow:5000", "mlflow", "localhost:5000"):
        assert status(server, SECRETS["admin-password"], host) == 200
    assert status(server, SECRETS["admin-password"], "evil.example.com") == 403
