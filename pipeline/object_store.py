"""Single files in an S3 object store: whole, checked by sha256, tried again with jitter.

Credentials, region and endpoint are the user's own: boto3 reads the usual environment variables
and files (``AWS_PROFILE``, ``AWS_ENDPOINT_URL``, ``~/.aws/config``, ...), and none of them is ever
passed on. boto3 itself retries what a server refuses (503) or a connection loses; here is what it
does not: a body that was cut or changed on the way.
"""

import hashlib
import os
import random
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.problems import StorageError, disk_errors

ATTEMPTS = 8
DOWNLOADS = 5
# Larger files go in parts, several at once.
PART = 64 * 2**20
AGAIN = "the same command goes on from here"

# AWS answers 400 to these, as to a request that is wrong.
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "InvalidToken"}

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# Above all no "..": a key becomes a path on this machine.
_SEGMENT = re.compile(r"(?!\.{1,2}$)[^/\\\x00-\x1f\x7f]{1,255}")


@dataclass(frozen=True)
class Entry:
    """An object; ``etag`` changes when its content does."""

    key: str
    size: int
    etag: str


def parse_address(text: str) -> tuple[str, str]:
    """(bucket, key) of ``s3://bucket/key``; the key may be empty.

    Raises:
        ValueError: not such an address, or one that could not be a path here.
    """
    scheme, _, rest = text.partition("://")
    bucket, _, key = rest.partition("/")
    key = key.rstrip("/")
    if scheme != "s3" or not _BUCKET.fullmatch(bucket):
        raise ValueError("not s3://BUCKET/NAME with a bucket's name of 3 to 63 of a-z 0-9 . -")
    if key and not safe_key(key):
        raise ValueError("the name has an empty part, '..', a backslash or a control character")
    return bucket, key


def safe_key(key: str) -> bool:
    """Whether a key may become a path below a folder of this machine."""
    return len(key) <= 1024 and all(_SEGMENT.fullmatch(part) for part in key.split("/"))


@cache
def client() -> Any:
    """This process's S3 client. Dead stores are given up after about half a minute."""
    return _client(int(os.environ.get("AWS_MAX_ATTEMPTS", ATTEMPTS)), 10, 60)


def _client(tries: int, connect_timeout: float, read_timeout: float) -> Any:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError

    config = Config(
        # "standard" waits a random part of 1, 2, 4, ... up to 20 s.
        retries={"mode": "standard", "total_max_attempts": tries},
        connect_timeout=connect_timeout,
        read_timeout=read_timeout,
    )
    try:
        return boto3.session.Session().client("s3", config=config)
    except (BotoCoreError, ValueError) as error:
        raise StorageError(f"the S3 settings cannot be used ({error}); correct them") from None


def arrow_filesystem() -> Any:
    """pyarrow's S3 filesystem at the same endpoint; it finds the credentials by itself."""
    from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

    meta = client().meta
    given = {}
    # Its own choice is right for AWS; of a custom endpoint it reads one of several settings only.
    if not (urlsplit(meta.endpoint_url).hostname or "").endswith(".amazonaws.com"):
        given = {"endpoint_override": meta.endpoint_url}
    if meta.region_name not in (None, "aws-global"):
        given["region"] = meta.region_name
    return S3FileSystem(
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS),
        connect_timeout=10,
        request_timeout=60,
        **given,
    )


def listing(bucket: str, prefix: str) -> list[Entry]:
    """All objects below ``prefix/``, or of the bucket, by key; folder markers are left out."""
    below = f"{prefix}/" if prefix else ""
    pages = client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=below)
    with s3_errors(bucket, prefix):
        return [
            Entry(row["Key"], row["Size"], row["ETag"].strip('"'))
            for page in pages
            for row in page.get("Contents", [])
            if not row["Key"].endswith("/")
        ]


def head(bucket: str, key: str) -> Entry | None:
    """An object's entry, or None if there is none."""
    found = _head(bucket, key)
    if found is None:
        return None
    return Entry(key, found["ContentLength"], found["ETag"].strip('"'))


def upload(path: Path, bucket: str, key: str) -> str:
    """Put a file there, whole or not at all, with its sha256; returns the etag."""
    from boto3.s3.transfer import TransferConfig

    sha = _sha256(path)
    extra = {"Metadata": {"sha256": sha}, "ChecksumAlgorithm": "SHA256"}
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
    with s3_errors(bucket, key):
        client().upload_file(str(path), bucket, key, ExtraArgs=extra, Config=config)
        found = _head(bucket, key)
    if found is None or found["Metadata"].get("sha256") != sha:
        raise StorageError(
            f"s3://{bucket}/{key}: another writer replaced or removed it at once; "
            "let one run at a time write there"
        )
    return str(found["ETag"]).strip('"')


def download(bucket: str, key: str, path: Path, sha256: str | None = None) -> str | None:
    """Get an object to ``path``, whole or not at all; returns its etag, None if there is none.

    Held against ``sha256``, or the one that :func:`upload` wrote beside it; an object that others
    brought has neither, and is held against its size and the checksum that boto3 asks for.

    Raises:
        StorageError: it came broken each of several times, or the store failed.
    """
    from boto3.exceptions import RetriesExceededError
    from boto3.s3.transfer import TransferConfig
    from botocore.exceptions import (
        FlexibleChecksumError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
    )

    cut = (
        FlexibleChecksumError,
        IncompleteReadError,
        ReadTimeoutError,
        ResponseStreamingError,
        RetriesExceededError,
    )
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART)
    temporary = path.with_name(f".{path.name[:200]}.{secrets.token_hex(6)}")
    why = ""
    with disk_errors(path), s3_errors(bucket, key):
        path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(DOWNLOADS):
            if attempt:
                time.sleep(random.uniform(0, 2**attempt / 4))
            found = _head(bucket, key)
            if found is None:
                return None
            expected = sha256 or found["Metadata"].get("sha256")
            try:
                client().download_file(bucket, key, str(temporary), Config=config)
                if temporary.stat().st_size != found["ContentLength"]:
                    why = "its size is wrong"
                elif expected is not None and _sha256(temporary) != expected:
                    why = "its sha256 is wrong"
                else:
                    os.replace(temporary, path)
                    return str(found["ETag"]).strip('"')
            except cut as error:
                why = " ".join(str(error).split())[:200]
            finally:
                temporary.unlink(missing_ok=True)
    raise StorageError(
        f"s3://{bucket}/{key}: damaged, or the connection is: read {DOWNLOADS} times, {why}; "
        "put the file there again, or delete it if it is of a run's cache"
    )


def delete(bucket: str, keys: Sequence[str]) -> None:
    """Remove objects; those that are not there are no error."""
    with s3_errors(bucket, ""):
        for key in keys:
            client().delete_object(Bucket=bucket, Key=key)


@contextmanager
def s3_errors(bucket: str, key: str) -> Iterator[None]:
    """boto3's exceptions as one sentence that names the address and says what to do."""
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import (
        BotoCoreError,
        ClientError,
        NoCredentialsError,
        PartialCredentialsError,
    )

    place = f"s3://{bucket}/{key}"
    try:
        yield
    except (NoCredentialsError, PartialCredentialsError):
        what, remedy = "no credentials", "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret"
    except ClientError as error:
        what, remedy = _refusal(error.response)
    except Boto3Error as error:
        # An upload's failure has the server's answer behind it.
        if isinstance(error.__context__, ClientError):
            what, remedy = _refusal(error.__context__.response)
        else:
            what, remedy = " ".join(str(error).split())[-200:], f"see the reason; {AGAIN}"
    except BotoCoreError as error:
        what = f"the object store at {_endpoint()} does not answer ({type(error).__name__})"
        remedy = f"start it, or correct AWS_ENDPOINT_URL; {AGAIN}"
    else:
        return
    raise StorageError(f"{place}: {what}; {remedy}")


def _refusal(response: dict[str, Any]) -> tuple[str, str]:
    code = str(response.get("Error", {}).get("Code", ""))
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if code == "NoSuchBucket":
        return "no such bucket", "create it, or correct the address"
    if code in _EXPIRED:
        return f"the credentials have expired ({code})", f"renew them; {AGAIN}"
    if code == "400":
        # The answer to a HEAD has no body to say why.
        what = "refused (400), as credentials that have expired are"
        return what, f"renew them, or correct the region; {AGAIN}"
    if status in (401, 403):
        return f"access refused ({code})", "give these credentials the right to read and write"
    if status == 404:
        return f"not there ({code})", "create it, or correct the address"
    what = f"the object store at {_endpoint()} answers {status} ({code}) again and again"
    return what, f"wait until it is well; {AGAIN}"


def _endpoint() -> str:
    parts = urlsplit(client().meta.endpoint_url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


def trouble(bucket: str, key: str) -> str | None:
    """What the store says at this moment if it is not well: one try, a few seconds.

    A refusal is an answer: who may write need not be allowed to ask.
    """
    from botocore.exceptions import ClientError

    try:
        with s3_errors(bucket, key):
            try:
                _client(1, 5, 5).head_object(Bucket=bucket, Key=key)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
                    raise
    except StorageError as error:
        return str(error)
    return None


def _head(bucket: str, key: str) -> dict[str, Any] | None:
    from botocore.exceptions import ClientError

    with s3_errors(bucket, key):
        try:
            answer: dict[str, Any] = client().head_object(Bucket=bucket, Key=key)
        except ClientError as error:
            # A missing bucket reads the same here: a HEAD has no body to say so.
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise
    return answer


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
