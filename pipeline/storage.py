"""Files that are whole or not there: atomic writes, sealed files and folders, content keys.

Every place is given as text or a path. One in S3 (`s3://`) is written there and in the mirror on
this machine (`pipeline.mirror`); what is at a place of a run in S3 is what S3 has.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import mirror
from pipeline.mirror import Place, local_path
from pipeline.problems import disk_errors

MANIFEST = "manifest.json"


def write_atomic(place: Place, content: bytes | Callable[[Path], object]) -> Path:
    """Write a whole file or leave what was there; return its path on this machine.

    `content` is the bytes, or a function that writes them to the path it is given (a sibling
    with the same suffix, so that savers that look at the suffix work).

    Raises:
        StorageError: the disk is full, or the object store failed.
    """
    path = local_path(place)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                content(temporary)
            _sync(temporary)
            etag = mirror.send(temporary, path)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        mirror.sent(path, etag)
        _sync(path.parent)
    return path


def write_sealed(place: Place, content: bytes | Callable[[Path], object]) -> Path:
    """As `write_atomic`, and then `seal`."""
    path = write_atomic(place, content)
    seal(path)
    return path


def seal(path: Path) -> None:
    """Write `NAME.sha256` beside a file, by which `is_whole` knows it.

    For formats that would not notice a changed bit.
    """
    write_atomic(seal_of(path), f"{sha256_file(path)}  {path.name}\n".encode())


def is_whole(place: Place) -> bool:
    """Whether a sealed file is there, each bit as it was; a damaged one is removed.

    A whole file without a seal (older than seals, or cut off just before it) gets one.
    """
    path = local_path(place)
    if not mirror.fetch(path):
        return False
    beside = seal_of(path)
    if not mirror.fetch(beside):
        seal(path)
        return True
    if beside.read_bytes().split()[:1] == [sha256_file(path).encode()]:
        return True
    print(f"{path}: damaged; removed, to be made again")
    mirror.remove(path)
    mirror.remove(beside)
    return False


@contextmanager
def atomic_folder(place: Place) -> Iterator[Path]:
    """Fill a folder that appears whole, with its manifest, or not at all.

    Yields a temporary sibling to write into. When the block ends without an exception its files
    are flushed, `manifest.json` (bytes and sha256 of each) is written last, and the sibling takes
    the place of `place`; a folder that was there is replaced. After a power cut between the two
    renames the old one is left as `.NAME.old-*`, and `place` is absent, never half written.
    """
    path = local_path(place)
    mark = secrets.token_hex(6)
    temporary = path.with_name(f".{path.name}.tmp-{mark}")
    replaced = path.with_name(f".{path.name}.old-{mark}")
    with disk_errors(path):
        temporary.mkdir(parents=True)
        try:
            yield temporary
            _seal(temporary)
            etags = mirror.send_folder(temporary, path, MANIFEST)
            if path.exists():
                # A rename cannot replace a folder that has files in it.
                os.replace(path, replaced)
            os.replace(temporary, path)
            for name, etag in etags.items():
                mirror.sent(path / name, etag)
            _sync(path.parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            # Only what has been replaced may go: if the second rename failed, put it back.
            if replaced.exists() and not path.exists():
                os.replace(replaced, path)
            shutil.rmtree(replaced, ignore_errors=True)


def folder_is_whole(place: Place, contents: bool = False) -> bool:
    """Whether a folder has its manifest and every file in it has the size written there.

    With `contents` the sha256 of each file is compared as well.
    """
    path = local_path(place)
    try:
        listed = json.loads((path / MANIFEST).read_bytes())["files"]
        return all(
            (path / name).stat().st_size == entry["bytes"]
            and (not contents or sha256_file(path / name) == entry["sha256"])
            for name, entry in listed.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # An unreadable manifest means the same as none: the folder is not to be used.
        return False


def content_key(*parts: object) -> str:
    """32 hex digits that change when any part does.

    Parts are None, bool, str, int, finite float, and lists, tuples and str-keyed dicts of them;
    anything else raises TypeError (or ValueError for NaN), because its text could hide what it is.
    """
    for part in parts:
        _check_keys(part)
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def sha256_file(place: Place) -> str:
    """The sha256 of a file, read in pieces."""
    with local_path(place).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_keys(part: object) -> None:
    # json turns the key 1 into "1": two different mappings would then share one key.
    if isinstance(part, dict):
        for key, value in part.items():
            if not isinstance(key, str):
                raise TypeError(f"a content key needs str keys, not {key!r}")
            _check_keys(value)
    elif isinstance(part, list | tuple):
        for value in part:
            _check_keys(value)


def seal_of(path: Path) -> Path:
    """Where a file's seal is."""
    return path.with_name(f"{path.name}.sha256")


def _seal(folder: Path) -> None:
    """Flush every file below a folder, then write the manifest that says it is complete."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    for path in [*files, *(p for p in folder.rglob("*") if p.is_dir())]:
        _sync(path)
    listed = {
        p.relative_to(folder).as_posix(): {"bytes": p.stat().st_size, "sha256": sha256_file(p)}
        for p in files
    }
    text = json.dumps({"files": listed}, indent=1, sort_keys=True) + "\n"
    write_atomic(folder / MANIFEST, text.encode())


def _sync(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
