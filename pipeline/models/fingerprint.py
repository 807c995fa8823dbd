"""Which model made a cached tensor: a hash of a model folder's parts."""

import hashlib
from functools import cache
from pathlib import Path

from pipeline.models.local import local_model

WHOLE = 256 * 1024 * 1024
PIECES, PIECE = 256, 64 * 1024


@cache
def fingerprint(folder: str, *parts: str) -> str:
    """Sixteen hex digits over the files of a model folder's parts (``transformer``, ``vae``, ...).

    Files of up to 256 MiB are read whole; of larger ones the size, the ends and pieces spread
    over the file: a different checkpoint of the same shape differs in all of them.
    """
    digest = hashlib.sha256()
    for part in parts:
        for path in sorted((local_model(folder) / part).rglob("*")):
            if not path.is_file():
                continue
            digest.update(f"{path.name}:{path.stat().st_size}".encode())
            _read_into(digest, path)
    return digest.hexdigest()[:16]


def _read_into(digest: "hashlib._Hash", path: Path) -> None:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= WHOLE:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
            return
        for i in range(PIECES):
            file.seek(i * (size - PIECE) // (PIECES - 1))
            digest.update(file.read(PIECE))
