"""A real S3 server on loopback: moto's, speaking the protocol over HTTP from its own process."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

BUCKET = "collection"
# Not in any way secret, and long enough to be searched for in all that a run writes.
KEY_ID = "AKIAPLANTEDFORTHETEST"
SECRET = "planted/Secret+that-must-not-be-written-anywhere"


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextmanager
def s3_server(log: Path) -> Iterator[str]:
    """The endpoint of a new, empty server with one bucket."""
    port = free_port()
    with log.open("w") as file:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        process = subprocess.Popen(command, stdout=file, stderr=file)
        try:
            wait_for(port, process, log)
            endpoint = f"http://127.0.0.1:{port}"
            client_for(endpoint).create_bucket(Bucket=BUCKET)
            yield endpoint
        finally:
            process.terminate()
            process.wait(30)


def wait_for(port: int, process: subprocess.Popen[Any], log: Path, seconds: float = 120) -> None:
    """Until something listens there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.1)
    raise AssertionError(f"nothing listens on {port}: {log.read_text()}")


def client_for(endpoint: str) -> Any:
    """A client of the test's own, whatever the environment says."""
    import boto3

    return boto3.session.Session().client(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=KEY_ID,
        aws_secret_access_key=SECRET,
    )


def settings(endpoint: str, cache: Path) -> dict[str, str]:
    """The environment of a user of that server, with a mirror of their own."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": KEY_ID,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "COLLECTIONLORA_CACHE": str(cache),
    }


def run_environment(endpoint: str, cache: Path) -> dict[str, str]:
    """The same for a command of its own process, which brings a small Ray of its own."""
    inherited = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    return inherited | settings(endpoint, cache) | {"OMP_NUM_THREADS": "1"}


def put_folder(endpoint: str, folder: Path, key: str) -> None:
    """As a user's own `aws s3 cp --recursive` would: without sums beside the objects."""
    client = client_for(endpoint)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = f"{key}/{path.relative_to(folder).as_posix()}"
            client.put_object(Bucket=BUCKET, Key=name, Body=path.read_bytes())


def keys_below(endpoint: str, prefix: str) -> dict[str, bytes]:
    """All objects below a prefix, by what follows it."""
    client, found = client_for(endpoint), {}
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
        for row in page.get("Contents", []):
            body = client.get_object(Bucket=BUCKET, Key=row["Key"])["Body"]
            found[row["Key"].removeprefix(prefix)] = body.read()
    return found
