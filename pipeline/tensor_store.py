"""Tensors under content keys, in Parquet parts that are written whole or not at all.

Writers in many processes add parts without talking to each other. A part's name is a hash of its
keys and the sha256 of its bytes, so whoever reads one knows it whole. Readers index all parts
once; of parts in S3 they read the keys alone there, and fetch those that they are asked for.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline import mirror, object_store
from pipeline.problems import StorageError
from pipeline.storage import sha256_file, write_atomic
from pipeline.types import TENSOR_SCHEMA

_SHA = 24


def pooled_key(key: str) -> str:
    """Where the second text encoder's vector of a prompt is, beside the prompt's states."""
    return f"{key}.pooled"


def write_part(folder: Path, tensors: Sequence[tuple[str, Tensor]]) -> None:
    """Write one Parquet part of (key, fp32 tensor) rows, atomically."""
    if not tensors:
        return
    keys = [key for key, _ in tensors]
    rows = {
        "key": keys,
        "shape": [list(t.shape) for _, t in tensors],
        "data": [t.contiguous().float().numpy().tobytes() for _, t in tensors],
    }
    buffer = io.BytesIO()
    # Latents are noise to a compressor: storing them plain lets readers map them. Pages have
    # checksums for readers of the keys alone; of the footer only the name's sha256 can tell.
    table = pa.table(rows, schema=TENSOR_SCHEMA)
    pq.write_table(table, buffer, compression="none", write_page_checksum=True)
    content = buffer.getvalue()
    name = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:24]
    sha = hashlib.sha256(content).hexdigest()[:_SHA]
    write_atomic(folder / f"part-{name}-{sha}.parquet", content)


class _DamagedError(StorageError):
    """A part's bytes are known to be others than its name says."""

    def __init__(self, part: Path) -> None:
        what = "damaged or removed while the run went on"
        super().__init__(f"{part}: {what}; run again, and it is made again")


def stored_keys(folder: Path) -> set[str]:
    """All keys in a store; a part that is not whole is deleted, to be made again.

    Raises:
        StorageError: a part cannot be read now, by which nothing is known against it: it stays.
    """
    keys: set[str] = set()
    for part in _parts(folder):
        try:
            part = _named_by_content(part)
            _check_copy(part)
            keys.update(_keys_of(part))
        except (pa.ArrowInvalid, _DamagedError):
            print(f"{part}: damaged; removed, its rows will be made again")
            mirror.remove(part)
        except FileNotFoundError:
            continue  # another run found it damaged
        except OSError as error:
            raise _unreadable(part, error) from error
    return keys


def count_rows(folder: Path) -> int:
    """How many rows a store has. Only looks: what to do about a damaged part is the run's."""
    rows = 0
    for part in _parts(folder):
        place, store = _readable(part)
        try:
            rows += pq.read_metadata(place, filesystem=store).num_rows
        except (pa.ArrowInvalid, OSError):
            continue
    return rows


class TensorStore:
    """Read access to the tensors of one or more folders.

    Raises (:meth:`get`):
        KeyError: no such tensor; run the stage that makes it.
        StorageError: the part that has it is damaged.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._rows: dict[str, tuple[Path, int]] = {}
        self._tables: dict[Path, pa.Table] = {}
        self._cache: dict[str, Tensor] = {}
        for folder in folders:
            for part in _parts(folder):
                try:
                    keys = _keys_of(part)
                except pa.ArrowInvalid as error:
                    raise _DamagedError(part) from error
                except OSError as error:
                    raise _unreadable(part, error) from error
                self._rows |= {key: (part, row) for row, key in enumerate(keys)}

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Tensor:
        """The fp32 tensor under a key."""
        if key not in self._cache:
            part, row = self._rows[key]
            table = self._table(part)
            data = np.frombuffer(table.column("data")[row].as_py(), dtype=np.float32)
            shape = table.column("shape")[row].as_py()
            self._cache[key] = torch.from_numpy(data.copy()).view(*shape)
        return self._cache[key]

    def get_many(self, keys: Sequence[str]) -> list[Tensor]:
        """The tensors under keys, in order."""
        return [self.get(key) for key in keys]

    def _table(self, part: Path) -> pa.Table:
        if part not in self._tables:
            mirror.fetch(part)
            if not part.is_file() or not _is_whole(part, part.stat().st_mtime_ns):
                raise _DamagedError(part)
            self._tables[part] = pq.read_table(part, memory_map=True)
        return self._tables[part]


def _parts(folder: Path) -> list[Path]:
    found = mirror.names(folder)
    return [folder / n for n in found if n.startswith("part-") and n.endswith(".parquet")]


def _keys_of(part: Path) -> list[str]:
    """The keys in a part's rows; of one that is in S3 and not here, its data stays there."""
    options = {"columns": ["key"], "page_checksum_verification": True}
    place, store = _readable(part)
    try:
        table = pq.read_table(place, filesystem=store, **options)
    except (pa.ArrowInvalid, OSError) as error:
        if store is None:
            raise
        # A failing network reads like damage: only all of the part's bytes can tell.
        if not mirror.fetch(part):
            raise FileNotFoundError(place) from error
        if not _is_whole(part, part.stat().st_mtime_ns):
            raise _DamagedError(part) from error
        table = pq.read_table(part, **options)
    keys: list[str] = table.column("key").to_pylist()
    return keys


def _readable(part: Path) -> tuple[str, Any]:
    """Where pyarrow reads a part: here, or in S3 if it is there alone."""
    remote = mirror.remote_of(part)
    if remote is None or part.is_file():
        return str(part), None
    return f"{remote.bucket}/{remote.key}", object_store.arrow_filesystem()


def _check_copy(part: Path) -> None:
    """Of a part that is on this machine, whether it is whole; the copy of one in S3 may go."""
    if not part.is_file() or _is_whole(part, part.stat().st_mtime_ns):
        return
    if mirror.remote_of(part) is None:
        raise _DamagedError(part)
    part.unlink()


def _unreadable(part: Path, error: OSError) -> StorageError:
    what = " ".join(str(error).split())[:300]
    remedy = f"see to the disk or the connection; {object_store.AGAIN}"
    return StorageError(f"{part}: cannot be read ({what}); {remedy}")


def _named_by_content(part: Path) -> Path:
    """A part of before names had a sha256 is read once as it is and gets its name."""
    if part.stem.count("-") == 2 or mirror.remote_of(part) is not None:
        return part
    try:
        pq.read_table(part)
    except OSError as error:
        # What the system refuses has its number; what cannot be decoded has none.
        if error.errno is not None:
            raise
        raise _DamagedError(part) from error
    return part.rename(part.with_name(f"{part.stem}-{sha256_file(part)[:_SHA]}.parquet"))


@cache
def _is_whole(part: Path, changed: int) -> bool:
    """Whether a part's bytes are those that its name says; looked up once a change."""
    return sha256_file(part)[:_SHA] == part.stem.rpartition("-")[2]
