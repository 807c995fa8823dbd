"""Files that are whole or not there: atomic writes, sealed folders, content keys.

Every place is given as text or a path and goes through `local_path`, which is where an object
store (`s3://`) will branch off.
"""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.problems import InputError, Problem

Place = str | os.PathLike[str]

MANIFEST = "manifest.json"


def local_path(place: Place) -> Path:
    """The path of a local place. Raises InputError for an address in an object store."""
    text = os.fspath(place)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return Path(text)
    if scheme == "file":
        return Path(rest)
    remedy = "give a path on a local or shared disk"
    raise InputError([Problem(text, "", None, f"{scheme}:// cannot be written to yet", remedy)])


def write_atomic(place: Place, content: bytes | Callable[[Path], object]) -> Path:
    """Write a whole file or leave what was there; return its path.

    `content` is the bytes, or a function that writes them to the path it is given (a sibling
    with the same suffix, so that savers that look at the suffix work).
    """
    path = local_path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(6)}{path.suffix}")
    try:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        _sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)
    return path


@contextmanager
def atomic_folder(place: Place) -> Iterator[Path]:
    """Fill a folder that appears whole, with its manifest, or not at all.

    Yields a temporary sibling to write into. When the block ends without an exception its files
    are flushed, `manifest.json` (bytes and sha256 of each) is written last, and the sibling takes
    the place of `place`; a folder that was there is replaced. After a power cut between the two
    renames the old one is left as `.NAME.old-*`, and `place` is absent, never half written.
    """
    path = local_path(place)
    path.parent.mkdir(parents=True, exist_ok=True)
    mark = secrets.token_hex(6)
    temporary = path.with_name(f".{path.name}.tmp-{mark}")
    replaced = path.with_name(f".{path.name}.old-{mark}")
    temporary.mkdir()
    try:
        yield temporary
        _seal(temporary)
        if path.exists():
            # A rename cannot replace a folder that has files in it.
            os.replace(path, replaced)
        os.replace(temporary, path)
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
