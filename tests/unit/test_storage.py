"""Files are whole or not there, and keys differ when what they stand for does."""

import os
from pathlib import Path

import pytest

from pipeline.mirror import local_path
from pipeline.problems import InputError
from pipeline.storage import (
    atomic_folder,
    content_key,
    folder_is_whole,
    sha256_file,
    write_atomic,
)


def test_write_atomic_takes_bytes_or_a_function(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "new" / "a.bin", b"one")
    assert path.read_bytes() == b"one"
    suffixes = []

    def save(place: Path) -> None:
        suffixes.append(place.suffix)
        place.write_bytes(b"two")

    write_atomic(str(path), save)
    assert path.read_bytes() == b"two" and suffixes == [".bin"]
    assert os.listdir(path.parent) == ["a.bin"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a.bin", b"old")

    def fail(place: Path) -> None:
        place.write_bytes(b"half")
        raise RuntimeError("disk pulled")

    with pytest.raises(RuntimeError, match="disk pulled"):
        write_atomic(path, fail)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_atomic_folder_appears_whole_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "student"
    for text in ("first", "second"):
        with atomic_folder(path) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "weights").write_text(text)
            (folder / text).write_text("")
            assert not (path / text).exists()
    assert (path / "sub" / "weights").read_text() == "second"
    assert not (path / "first").exists()
    assert folder_is_whole(path, contents=True) and os.listdir(tmp_path) == ["student"]


def test_atomic_folder_keeps_the_old_one_on_failure(tmp_path: Path) -> None:
    path = tmp_path / "student"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("good")
    with pytest.raises(RuntimeError), atomic_folder(path) as folder:
        (folder / "weights").write_text("half")
        raise RuntimeError
    assert (path / "weights").read_text() == "good" and os.listdir(tmp_path) == ["student"]


def test_atomic_folder_survives_a_failed_second_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student"
    with atomic_folder(path) as folder:
        (folder / "weights").write_text("good")
    replace = os.replace

    def flaky(source: Path, target: Path) -> None:
        if ".tmp-" in str(source) and target == path:
            raise OSError("no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", flaky)
    with pytest.raises(OSError, match="no"), atomic_folder(path) as folder:
        (folder / "weights").write_text("new")
    assert (path / "weights").read_text() == "good" and os.listdir(tmp_path) == ["student"]


@pytest.mark.parametrize("harm", ["truncate", "flip", "remove", "manifest", "garbage"])
def test_a_harmed_folder_is_not_whole(tmp_path: Path, harm: str) -> None:
    with atomic_folder(tmp_path / "a") as folder:
        (folder / "weights").write_bytes(b"12345")
    file, manifest = tmp_path / "a" / "weights", tmp_path / "a" / "manifest.json"
    if harm == "truncate":
        file.write_bytes(b"123")
    elif harm == "flip":
        file.write_bytes(b"12346")
    elif harm == "remove":
        file.unlink()
    elif harm == "manifest":
        manifest.unlink()
    else:
        manifest.write_text("[1]")
    assert not folder_is_whole(tmp_path / "a", contents=True)
    assert folder_is_whole(tmp_path / "a") == (harm == "flip")


def test_content_keys() -> None:
    key = content_key("adapter", {"b": 1, "a": [1.5, None]}, 3)
    assert key == content_key("adapter", {"a": [1.5, None], "b": 1}, 3)
    assert len(key) == 32 and set(key) <= set("0123456789abcdef")
    parts = [(), (None,), (1,), (1.0,), ("1",), (True,), ([1],), ([[1]],), ({"1": 1},), (1, 1)]
    assert len({content_key(*p) for p in parts}) == len(parts)
    # Known value: a key that changes between versions would throw every cache away.
    assert content_key("a", 1) == "135f17a475a61afdeeaf3759ad2e45ad"


@pytest.mark.parametrize("part", [{1: "x"}, [{"a": {2: 3}}], b"bytes", Path("x"), {1, 2}])
def test_content_key_refuses_what_it_cannot_name(part: object) -> None:
    with pytest.raises(TypeError):
        content_key(part)


def test_content_key_refuses_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_key(float("nan"))


def test_sha256_file(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a", b"abc")
    assert sha256_file(path).startswith("ba7816bf8f01cfea414140de5dae2223")


def test_places() -> None:
    assert local_path("file:///a/b") == Path("/a/b") and local_path("a/b") == Path("a/b")
    with pytest.raises(InputError, match="gs://bucket/x: not an address that can"):
        write_atomic("gs://bucket/x", b"")
