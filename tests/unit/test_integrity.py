"""Cut or changed at random, a file of a cache is found out every time, and made again."""

import random
from pathlib import Path

import pytest
import torch

from pipeline.storage import atomic_folder, folder_is_whole, is_whole, write_sealed
from pipeline.tensor_store import stored_keys, write_part


def harm(content: bytes, rng: random.Random) -> bytes:
    """Cut short, or with one bit changed."""
    place = rng.randrange(len(content))
    if rng.random() < 0.5:
        return content[:place]
    return content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :]


def test_parts_of_a_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, tensor = random.Random(0), torch.arange(60.0).view(6, 10)
    for i in range(100):
        folder = tmp_path / str(i)
        write_part(folder, [("a", tensor)])
        (part,) = folder.iterdir()
        part.write_bytes(harm(part.read_bytes(), rng))
        assert stored_keys(folder) == set() and not part.exists()
        assert part.name in capsys.readouterr().out
        write_part(folder, [("a", tensor)])
        assert stored_keys(folder) == {"a"}


def test_sealed_files(tmp_path: Path) -> None:
    rng, path = random.Random(1), tmp_path / "adapter.safetensors"
    for _ in range(60):
        write_sealed(path, random.Random(2).randbytes(300))
        assert is_whole(path)
        path.write_bytes(harm(path.read_bytes(), rng))
        assert not is_whole(path) and not path.exists()


def test_folders_with_a_manifest(tmp_path: Path) -> None:
    rng, place = random.Random(3), tmp_path / "checkpoint"
    for _ in range(60):
        with atomic_folder(place) as folder:
            (folder / "weights").write_bytes(random.Random(4).randbytes(300))
        assert folder_is_whole(place, contents=True)
        file = place / "weights"
        file.write_bytes(harm(file.read_bytes(), rng))
        assert not folder_is_whole(place, contents=True)
