"""Tensors under content keys, in Parquet parts that are written whole or not at all.

Writers in many processes add parts without talking to each other; a part's name is a hash of
its keys. Readers index all parts once and map them into memory.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.storage import write_atomic
from pipeline.types import TENSOR_SCHEMA


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
    # Latents are noise to a compressor: storing them plain lets readers map them.
    pq.write_table(pa.table(rows, schema=TENSOR_SCHEMA), buffer, compression="none")
    name = hashlib.sha256("\n".join(sorted(keys)).encode()).hexdigest()[:24]
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"part-{name}.parquet", buffer.getvalue())


def stored_keys(folder: Path) -> set[str]:
    """All keys in a store; a part that cannot be read is deleted, to be made again."""
    keys: set[str] = set()
    for part in sorted(folder.glob("part-*.parquet")):
        try:
            keys.update(pq.read_table(part, columns=["key"]).column("key").to_pylist())
        except (pa.ArrowInvalid, OSError):
            print(f"{part}: damaged; removed, its rows will be made again")
            part.unlink()
    return keys


class TensorStore:
    """Read access to the tensors of one or more folders.

    Raises (:meth:`get`):
        KeyError: no such tensor; run the stage that makes it.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._rows: dict[str, tuple[pa.Table, int]] = {}
        self._cache: dict[str, Tensor] = {}
        for folder in folders:
            for part in sorted(folder.glob("part-*.parquet")):
                table = pq.read_table(part, memory_map=True)
                for row, key in enumerate(table.column("key").to_pylist()):
                    self._rows[key] = (table, row)

    def __contains__(self, key: str) -> bool:
        return key in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, key: str) -> Tensor:
        """The fp32 tensor under a key."""
        if key not in self._cache:
            table, row = self._rows[key]
            data = np.frombuffer(table.column("data")[row].as_py(), dtype=np.float32)
            shape = table.column("shape")[row].as_py()
            self._cache[key] = torch.from_numpy(data.copy()).view(*shape)
        return self._cache[key]

    def get_many(self, keys: Sequence[str]) -> list[Tensor]:
        """The tensors under keys, in order."""
        return [self.get(key) for key in keys]
