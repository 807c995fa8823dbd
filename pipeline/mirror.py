"""A folder on this machine for each place in S3, so that all code reads and writes plain files.

``s3://bucket/key`` lies at ``ROOT/collectionlora-s3/live/bucket/key``: such a path names its
address, and the mirror's part of it is the same on every node, so paths travel between nodes as
they are. The object store is the truth and the mirror a cache of it, to be deleted at any time:

- what is written goes to the store first (`storage.write_atomic`, `storage.atomic_folder`);
- what is read is brought up to date first (:func:`at_hand`, :func:`fetch`, :func:`pull`);
- a tree that others keep, such as a bank, is read under its content's key (:func:`pinned`):
  every node sees the one that the run began with, or is told that it has changed.

Paths that are not in the mirror pass through all of this untouched.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pipeline import object_store
from pipeline.object_store import Entry, parse_address, safe_key
from pipeline.problems import InputError, Problem, StorageError

Place = str | os.PathLike[str]

MARKER = "collectionlora-s3"
LIVE = "live"
THREADS = 8
_VERSION = re.compile(rf"{LIVE}|[0-9a-f]{{16}}-[0-9]+")


@dataclass(frozen=True)
class Remote:
    """Where a mirrored path is in S3; ``version`` is ``live``, or a pinned tree's key and depth."""

    version: str
    bucket: str
    key: str

    @property
    def path(self) -> Path:
        return _root() / MARKER / self.version / self.bucket / self.key

    @property
    def mark(self) -> Path:
        """Holds the etag of what is at ``path``."""
        return _root() / f"{MARKER}-etags" / self.version / self.bucket / f"{self.key}.etag"

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def local_path(place: Place) -> Path:
    """The path on this machine of a local place, an S3 address, or another node's mirrored path.

    Raises InputError for an address of another scheme.
    """
    text = os.fspath(place)
    scheme, separator, rest = text.partition("://")
    if not separator:
        remote = remote_of(Path(text))
        return remote.path if remote else Path(text)
    if scheme == "file":
        return Path(rest)
    if scheme == "s3":
        try:
            return Remote(LIVE, *parse_address(text)).path
        except ValueError as error:
            what = str(error)
    else:
        what = "not an address that can be read or written"
    raise InputError([Problem(shown(text), "", None, what, "give a path, or s3://BUCKET/NAME")])


def remote_of(path: Path) -> Remote | None:
    """Where a path in the mirror is in S3; None for any other path."""
    parts = path.parts
    # A cache's own folder may have the marker's name.
    for i, (part, version, bucket) in enumerate(zip(parts, parts[1:], parts[2:], strict=False)):
        if part == MARKER and _VERSION.fullmatch(version):
            return Remote(version, bucket, "/".join(parts[i + 3 :]))
    return None


def address(path: Path) -> str | None:
    """The S3 address of a path in the mirror."""
    remote = remote_of(path)
    return str(remote) if remote else None


def readable(text: str) -> str:
    """A message with addresses in place of the mirrored paths in it."""
    return re.sub(rf"[^\s'\"]*/{MARKER}/(?:{_VERSION.pattern})/", "s3://", text)


def shown(text: str) -> str:
    """An address without the password that somebody may have put into it."""
    scheme, separator, rest = text.partition("://")
    authority, slash, path = rest.partition("/")
    login, at, host = authority.rpartition("@")
    return f"{scheme}://***@{host}{slash}{path}" if separator and at and login else text


def at_hand(place: Place) -> Path:
    """A file's path on this machine, fetched first if it is in the mirror and out of date."""
    path = local_path(place)
    fetch(path)
    return path


def fetch(path: Path) -> bool:
    """Whether there is such a file; one in the mirror is brought up to date.

    A file of a run that was changed here and not in the store is kept: it is yet to be published.
    """
    remote = remote_of(path)
    if remote is None:
        return path.is_file()
    if remote.version != LIVE:
        return path.is_file() or _fetch_pinned(remote)
    # A bucket is no file, and S3 refuses to be asked.
    entry = object_store.head(remote.bucket, remote.key) if remote.key else None
    if entry is None:
        return False
    _bring(remote, entry)
    return path.is_file()


def pull(folder: Path) -> None:
    """Bring all files below a folder up to date; nothing to do outside the mirror."""
    remote = remote_of(folder)
    if remote is not None:
        _bring_all(remote, object_store.listing(remote.bucket, remote.key))


def names(folder: Path) -> list[str]:
    """The names of the files that are directly in a folder, sorted."""
    remote = remote_of(folder)
    if remote is None:
        return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    below = [e.key[len(remote.key) + 1 :] for e in object_store.listing(remote.bucket, remote.key)]
    return sorted(name for name in below if "/" not in name)


def send(source: Path, path: Path) -> str | None:
    """Put ``source`` into S3 as what is to be at ``path``; its etag, for :func:`sent`.

    Nothing to do outside the mirror.
    """
    remote = remote_of(path)
    if remote is None:
        return None
    return object_store.upload(source, remote.bucket, remote.key)


def sent(path: Path, etag: str | None) -> None:
    """Note, once a sent file is at its place in the mirror, that it is what S3 has."""
    remote = remote_of(path)
    if remote is not None and etag is not None:
        _set_mark(remote, etag)


def publish(path: Path) -> None:
    """Put a file of the mirror that was changed in place (a history, a database) into S3."""
    if remote_of(path) is not None and path.is_file():
        sent(path, send(path, path))


def send_folder(source: Path, path: Path, last: str) -> dict[str, str | None]:
    """Put a folder into S3 in place of what is there, its file ``last`` at the end.

    The old one loses that file first: who wants it sees the old folder, none, or the new one.
    Returns etags by name, for :func:`sent`.
    """
    remote = remote_of(path)
    if remote is None:
        return {}
    inner = [p.relative_to(source).as_posix() for p in sorted(source.rglob("*")) if p.is_file()]
    inner.sort(key=lambda name: name == last)
    old = {e.key for e in object_store.listing(remote.bucket, remote.key)}
    object_store.delete(remote.bucket, sorted(old & {f"{remote.key}/{last}"}))
    etags = {name: send(source / name, path / name) for name in inner}
    object_store.delete(remote.bucket, sorted(old - {f"{remote.key}/{name}" for name in inner}))
    return etags


def remove(path: Path) -> None:
    """Delete a file, in S3 too."""
    remote = remote_of(path)
    if remote is not None:
        object_store.delete(remote.bucket, [remote.key])
        remote.mark.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


@cache
def pinned(text: str) -> Path:
    """The folder on this machine of a tree in S3 as it is at the first call; all is fetched.

    The folder's name is a key of the tree's content (names, sizes, etags), so another version is
    another folder. sha256 sums of a ``manifest.json`` in it are held against the files.

    Raises:
        StorageError: nothing there, a file that came broken, or the store failed.
        InputError: an object whose name cannot be a path here.
    """
    bucket, key = parse_address(text)
    entries = object_store.listing(bucket, key)
    if not entries:
        what = "nothing there; correct the address, or put the files there"
        raise StorageError(f"s3://{bucket}/{key}: {what}")
    for entry in entries:
        if not safe_key(entry.key):
            what, remedy = "an object whose name cannot be a path", "rename or remove it"
            raise InputError([Problem(f"s3://{bucket}/{entry.key!r}", "", None, what, remedy)])
    depth = len(key.split("/")) if key else 0
    remote = Remote(f"{_content(entries)}-{depth}", bucket, key)
    sums = _sums(remote, entries)
    missing = [e for e in entries if not _in(remote, e).path.is_file()]
    _each(lambda e: _download(_in(remote, e), sums.get(e.key)), missing)
    return remote.path


def _fetch_pinned(remote: Remote) -> bool:
    pin, _, depth = remote.version.partition("-")
    top = "/".join(remote.key.split("/")[: int(depth)])
    entries = object_store.listing(remote.bucket, top)
    if _content(entries) != pin:
        raise StorageError(
            f"s3://{remote.bucket}/{top}: it was changed while a run read it; start the run again"
        )
    if remote.key not in {e.key for e in entries}:
        return False
    sums = _sums(Remote(remote.version, remote.bucket, top), entries)
    _download(remote, sums.get(remote.key))
    return True


def _sums(tree: Remote, entries: Iterable[Entry]) -> dict[str, str]:
    """sha256 by key, from the tree's manifest, if it has one."""
    manifest = _in(tree, Entry("/".join([*tree.key.split("/"), "manifest.json"]).strip("/"), 0, ""))
    if manifest.key not in {e.key for e in entries}:
        return {}
    if not manifest.path.is_file():
        _download(manifest, None)
    try:
        listed = json.loads(manifest.path.read_bytes())["files"]
        above = manifest.key.removesuffix("manifest.json")
        return {f"{above}{name}": str(entry["sha256"]) for name, entry in listed.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # of something else, under the same name


def _in(tree: Remote, entry: Entry) -> Remote:
    return Remote(tree.version, tree.bucket, entry.key)


def _content(entries: Iterable[Entry]) -> str:
    text = json.dumps([[e.key, e.size, e.etag] for e in entries])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _download(remote: Remote, sha256: str | None) -> None:
    if object_store.download(remote.bucket, remote.key, remote.path, sha256) is None:
        raise StorageError(f"{remote}: removed while it was read; start the run again")


def _bring_all(remote: Remote, entries: Iterable[Entry]) -> None:
    _each(lambda e: _bring(_in(remote, e), e), [e for e in entries if safe_key(e.key)])


def _bring(remote: Remote, entry: Entry) -> None:
    if remote.path.is_file() and _mark(remote) == entry.etag:
        return
    etag = object_store.download(remote.bucket, remote.key, remote.path)
    if etag is not None:
        _set_mark(remote, etag)


def _each(work: Callable[[Entry], None], entries: Iterable[Entry]) -> None:
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in pool.map(work, entries):
            pass


def _mark(remote: Remote) -> str:
    try:
        return remote.mark.read_text()
    except FileNotFoundError:
        return ""


def _set_mark(remote: Remote, text: str) -> None:
    remote.mark.parent.mkdir(parents=True, exist_ok=True)
    new = remote.mark.with_name(f"{remote.mark.name}.{os.getpid()}")
    new.write_text(text)
    os.replace(new, remote.mark)


def _root() -> Path:
    """``COLLECTIONLORA_CACHE``, or a folder of this user's in the temporary one."""
    given = os.environ.get("COLLECTIONLORA_CACHE")
    if given:
        return Path(given)
    root = Path(tempfile.gettempdir()) / f"collectionlora-{os.getuid()}"
    root.mkdir(mode=0o700, exist_ok=True)
    if root.stat().st_uid != os.getuid() or root.is_symlink():
        raise StorageError(f"{root}: another user has it; set COLLECTIONLORA_CACHE")
    return root
