"""Where a model's folder is on this node: local, or brought from a bucket or the Hub once.

An address is ``s3://bucket/prefix`` or ``hf://owner/name`` (``hf://owner/name@revision``); all
else is a path. Of a model's files only safetensors, JSON and a tokenizer's text come along: a
pickle never does.
"""

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.problems import InputError, Problem

WANTED = (".safetensors", ".json", ".txt", ".model", ".jinja")
CACHE = "COLLECTIONLORA_MODELS"
HUB = "hf://"


def local_model(path: str | Path) -> Path:
    """The folder of a model; an address is fetched first, by one process a node.

    The others wait for that one. The cache is ``$COLLECTIONLORA_MODELS``, by default
    ``~/.cache/collectionlora``; what it holds whole is used without asking again, except that a
    bucket is listed, so that other files under the same address are another folder.

    Raises:
        InputError: the address is malformed, empty, or cannot be reached.
    """
    text = str(path)
    if text.startswith(HUB):
        return _from_hub(text)
    if text.startswith("s3://"):
        return _from_bucket(text)
    return Path(path)


def hub_name(text: str) -> bool:
    """Whether a text has the form of a model's name on the Hub, as a relative path may."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", text, re.ASCII) is not None


def absolute(path: str) -> str:
    """A path that means the same in every process; an address already does."""
    return path if "://" in path else str(Path(path).resolve())


@cache
def _from_hub(address: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    name, _, revision = address.removeprefix(HUB).partition("@")
    patterns = [f"*{ending}" for ending in WANTED]
    try:
        with _one_at_a_time(_cache_folder() / f"{_digest(address)}.lock"):
            # It has a cache, resuming and locks of its own; ours saves asking eight times.
            return Path(snapshot_download(name, revision=revision or None, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        remedy = "correct the address, log in with `hf auth login`, or give a local folder"
        raise _refused(address, f"the Hub did not give it: {error}", remedy) from None


@cache
def _from_bucket(address: str) -> Path:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").partition("/")
    prefix = prefix.strip("/") + "/"
    try:
        # The endpoint, region and keys are botocore's own: AWS_ENDPOINT_URL, AWS_PROFILE, ...
        client = boto3.client("s3")
        objects = list(_objects(client, bucket, prefix))
        if not objects:
            raise _refused(address, "no model files there", "correct the bucket or the prefix")
        folder = _cache_folder() / _digest(address, *(str(o) for o in objects))
        with _one_at_a_time(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _fetch(client, bucket, prefix, [key for key, _, _ in objects], folder)
        return folder
    except (BotoCoreError, ClientError, Boto3Error) as error:
        remedy = "correct the address, or set AWS_ENDPOINT_URL and the keys that botocore reads"
        raise _refused(address, f"the bucket did not give it: {error}", remedy) from None


def _objects(client: Any, bucket: str, prefix: str) -> Iterator[tuple[str, int, str]]:
    """(key, bytes, tag) of the wanted objects below a prefix, in order."""
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", []):
            parts = PurePosixPath(entry["Key"].removeprefix(prefix))
            # A key is any text: it must not lead out of the folder.
            if parts.suffix in WANTED and ".." not in parts.parts and not parts.is_absolute():
                yield entry["Key"], entry["Size"], entry["ETag"]


def _fetch(client: Any, bucket: str, prefix: str, keys: list[str], folder: Path) -> None:
    """Fill a folder that appears whole or not at all; we hold its lock."""
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for key in keys:
        target = partial / key.removeprefix(prefix)
        target.parent.mkdir(parents=True, exist_ok=True)
        client.download_file(bucket, key, str(target))
    os.replace(partial, folder)


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    """One process a node within the block; a dead one's lock is free."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cache_folder() -> Path:
    return Path(os.environ.get(CACHE) or Path.home() / ".cache" / "collectionlora")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]


def _refused(address: str, what: str, remedy: str) -> InputError:
    return InputError([Problem(address, "", None, what, remedy)])
