"""The tensor store: what is written comes back; a damaged part is named and made again."""

import errno
from pathlib import Path

import pytest
import torch

from pipeline import tensor_store
from pipeline.problems import StorageError
from pipeline.tensor_store import TensorStore, stored_keys, write_part

A, B, C = torch.arange(12.0).reshape(3, 4), torch.randn(5, 2), torch.randn(1, 7)


def test_round_trip_over_two_parts_and_two_folders(tmp_path: Path) -> None:
    write_part(tmp_path / "x", [("a", A), ("b", B.T)])
    write_part(tmp_path / "x", [("c", C)])
    write_part(tmp_path / "y", [("d", C.to(torch.bfloat16))])
    assert stored_keys(tmp_path / "x") == {"a", "b", "c"}
    store = TensorStore([tmp_path / "x", tmp_path / "y"])
    assert len(store) == 4
    assert "d" in store
    assert "e" not in store
    found = store.get_many(["c", "a", "b", "d"])
    for tensor, expected in zip(found, [C, A, B.T, C.to(torch.bfloat16).float()], strict=True):
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected)
    with pytest.raises(KeyError):
        store.get("e")


def test_what_is_read_can_be_written_to_without_touching_the_store(tmp_path: Path) -> None:
    write_part(tmp_path, [("a", A)])
    TensorStore([tmp_path]).get("a").zero_()
    assert torch.equal(TensorStore([tmp_path]).get("a"), A)


def test_the_same_part_has_the_same_name_and_bytes(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        write_part(tmp_path / folder, [("a", A), ("c", C)])
    (x,), (y,) = (list((tmp_path / f).iterdir()) for f in ("x", "y"))
    assert x.name == y.name
    assert x.read_bytes() == y.read_bytes()
    write_part(tmp_path / "x", [])
    assert list((tmp_path / "x").iterdir()) == [x]


@pytest.mark.parametrize("keep", [0, 3, 0.5, 0.95])
def test_a_damaged_part_is_removed_and_named(
    tmp_path: Path, keep: float, capsys: pytest.CaptureFixture[str]
) -> None:
    write_part(tmp_path, [("a", A)])
    (bad,) = tmp_path.iterdir()
    write_part(tmp_path, [("b", B)])
    content = bad.read_bytes()
    bad.write_bytes(content[: int(keep * len(content)) if keep < 1 else int(keep)])
    assert stored_keys(tmp_path) == {"b"}
    assert not bad.exists()
    assert bad.name in capsys.readouterr().out
    # Made again, it is whole.
    write_part(tmp_path, [("a", A)])
    assert stored_keys(tmp_path) == {"a", "b"}
    assert capsys.readouterr().out == ""


def test_a_part_that_cannot_be_read_now_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_part(tmp_path, [("a", A)])
    (part,) = tmp_path.iterdir()

    def fail(*_: object) -> bool:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(tensor_store, "_is_whole", fail)
        with pytest.raises(StorageError, match=rf"{part.name}: cannot be read .*Input/output"):
            stored_keys(tmp_path)
    assert stored_keys(tmp_path) == {"a"}


@pytest.mark.parametrize("number", [None, errno.EACCES])
def test_of_an_older_part_damage_and_a_refusal_are_told_apart(
    tmp_path: Path, number: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = tmp_path / "part-older.parquet"
    part.touch()

    def fail(*_: object, **__: object) -> None:
        raise OSError("Couldn't deserialize thrift") if number is None else OSError(number, "no")

    monkeypatch.setattr(tensor_store.pq, "read_table", fail)
    if number is None:
        assert stored_keys(tmp_path) == set() and not part.exists()
        return
    with pytest.raises(StorageError, match="cannot be read"):
        stored_keys(tmp_path)
    assert part.exists()
