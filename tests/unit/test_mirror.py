"""Places in S3 on a real server: the store is the truth, the mirror a checked cache of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import mirror, object_store
from pipeline.bank import load_bank
from pipeline.miniature.bank import write_bank
from pipeline.mirror import local_path
from pipeline.object_store import parse_address
from pipeline.problems import InputError, StorageError
from pipeline.storage import (
    atomic_folder,
    folder_is_whole,
    is_whole,
    write_atomic,
    write_sealed,
)
from pipeline.tensor_store import TensorStore, stored_keys, write_part
from tests.s3_server import BUCKET, client_for, keys_below, put_folder, settings

RUN = f"s3://{BUCKET}/run"


@pytest.fixture
def endpoint(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A node whose mirror is empty, and an empty run."""
    for name, value in settings(server, tmp_path / "node").items():
        monkeypatch.setenv(name, value)
    object_store.client.cache_clear()
    mirror.pinned.cache_clear()
    for key in keys_below(server, ""):
        client_for(server).delete_object(Bucket=BUCKET, Key=key)
    yield server
    object_store.client.cache_clear()


def on_another_node(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    monkeypatch.setenv("COLLECTIONLORA_CACHE", str(cache))


def test_paths_are_addresses_on_every_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    on_another_node(monkeypatch, tmp_path / "a")
    here = local_path("s3://bucket/some/run") / "cache" / "x.json"
    assert mirror.address(here) == "s3://bucket/some/run/cache/x.json"
    on_another_node(monkeypatch, tmp_path / "b")
    assert local_path(here) == tmp_path / "b" / here.relative_to(tmp_path / "a")
    assert mirror.readable(f"{here}: damaged") == "s3://bucket/some/run/cache/x.json: damaged"
    # A cache with the mirror's own name, and an object that has it in its own.
    on_another_node(monkeypatch, tmp_path / "collectionlora-s3")
    for place in ("s3://bucket/run/x.json", "s3://bucket/collectionlora-s3/live/bucket/x.json"):
        assert mirror.address(local_path(place)) == place
    ordinary = tmp_path / "collectionlora-s3" / "mine"
    assert mirror.address(ordinary) is None and local_path(ordinary) == ordinary


@pytest.mark.parametrize(
    "text",
    [
        "s3://",
        "s3://B/x",
        "s3://../x",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/a/./b",
        "s3://key:secret@bucket/x",
        "s3://bucket/a\nb",
        "s3://bucket/a\\b",
        "s3a://bucket/x",
        "gs://bucket/x",
        "http://bucket/x",
    ],
)
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not s3://|an empty part"):
        parse_address(text)
    with pytest.raises(InputError) as refused:
        local_path(text)
    assert "secret" not in str(refused.value)


def test_a_file_written_here_is_read_there(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_sealed(f"{RUN}/a.json", b"[1]")
    assert keys_below(endpoint, "run/").keys() == {"a.json", "a.json.sha256"}
    on_another_node(monkeypatch, tmp_path / "other")
    there = local_path(path)
    assert not there.exists()
    assert is_whole(there) and there.read_bytes() == b"[1]"
    write_atomic(there, b"[2]")
    on_another_node(monkeypatch, tmp_path / "node")
    assert mirror.fetch(path) and path.read_bytes() == b"[2]"
    mirror.remove(there)
    assert not mirror.fetch(path)


def test_what_was_changed_here_and_not_published_is_kept(endpoint: str) -> None:
    path = write_atomic(f"{RUN}/history.jsonl", b"1\n")
    with path.open("ab") as file:
        file.write(b"2\n")
    assert mirror.fetch(path) and path.read_bytes() == b"1\n2\n"
    mirror.publish(path)
    assert keys_below(endpoint, "run/") == {"history.jsonl": b"1\n2\n"}


def test_a_folder_is_there_whole_or_not_at_all(endpoint: str) -> None:
    place = f"{RUN}/student"
    for names in (["a", "sub/b"], ["a", "sub/c"]):
        with atomic_folder(place) as folder:
            (folder / "sub").mkdir()
            for name in names:
                (folder / name).write_text(name)
    assert keys_below(endpoint, "run/student/").keys() == {"a", "sub/c", "manifest.json"}
    assert folder_is_whole(place, contents=True)

    class Lost(Exception):
        pass

    sent: list[str] = []
    upload = object_store.upload

    def lose(path: Path, bucket: str, key: str) -> str:
        if len(sent) == 1:
            raise Lost
        sent.append(key)
        return upload(path, bucket, key)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Lost):
        patch.setattr(object_store, "upload", lose)
        with atomic_folder(place) as folder:
            for name in ("a", "d"):
                (folder / name).write_text("new")
    # Half of the new one is there, and without a manifest it is nobody's.
    assert "manifest.json" not in keys_below(endpoint, "run/student/")


def test_large_files_go_in_parts(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "PART", 5 * 2**20)
    content = torch.randint(0, 256, (11 * 2**20,), dtype=torch.uint8).numpy().tobytes()
    path = write_atomic(f"{RUN}/large", content)
    head = client_for(endpoint).head_object(Bucket=BUCKET, Key="run/large")
    assert head["ETag"].strip('"').endswith("-3")
    path.unlink()
    assert mirror.fetch(path) and path.read_bytes() == content


def test_parts_are_indexed_in_the_store_and_fetched_when_asked_for(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local_path(f"{RUN}/cache/encodings")
    write_part(folder, [("a", torch.arange(6.0).view(2, 3))])
    write_part(folder, [("b", torch.ones(4))])
    on_another_node(monkeypatch, tmp_path / "other")
    there = local_path(folder)
    assert stored_keys(there) == {"a", "b"}
    store = TensorStore([there])
    assert len(store) == 2 and not list(there.glob("*"))
    assert torch.equal(store.get("a"), torch.arange(6.0).view(2, 3))
    assert len(list(there.glob("part-*"))) == 1


def test_a_damaged_part_in_the_store_is_removed_there(
    endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = local_path(f"{RUN}/cache/targets")
    write_part(folder, [("a", torch.ones(40))])
    write_part(folder, [("b", torch.ones(40))])
    first, second = sorted(folder.iterdir())
    client = client_for(endpoint)
    cut = first.read_bytes()[:-9]
    client.put_object(Bucket=BUCKET, Key=f"run/cache/targets/{first.name}", Body=cut)
    first.unlink()
    assert len(stored_keys(folder)) == 1
    assert "made again" in capsys.readouterr().out
    assert keys_below(endpoint, "run/cache/targets/").keys() == {second.name}


def test_a_copy_that_is_damaged_costs_the_part_in_the_store_nothing(endpoint: str) -> None:
    folder = local_path(f"{RUN}/cache/targets")
    write_part(folder, [("a", torch.ones(40))])
    (part,) = folder.iterdir()
    part.write_bytes(part.read_bytes()[:-9])
    assert stored_keys(folder) == {"a"}
    assert keys_below(endpoint, "run/cache/targets/").keys() == {part.name}
    assert torch.equal(TensorStore([folder]).get("a"), torch.ones(40))


def test_an_object_that_is_not_what_its_sum_says_is_refused_by_name(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "DOWNLOADS", 2)
    path = write_atomic(f"{RUN}/a.bin", b"right")
    head = client_for(endpoint).head_object(Bucket=BUCKET, Key="run/a.bin")
    client_for(endpoint).put_object(
        Bucket=BUCKET, Key="run/a.bin", Body=b"wrong", Metadata=head["Metadata"]
    )
    with pytest.raises(StorageError, match=r"s3://collection/run/a\.bin: damaged.*sha256"):
        mirror.fetch(path)
    assert path.read_bytes() == b"right"


def test_a_bank_is_read_as_it_was_at_the_start(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bank(tmp_path / "bank", ["snow"], pairs=1, general=1, sources=1, test=1)
    put_folder(endpoint, tmp_path / "bank", "bank")
    bank = load_bank(f"s3://{BUCKET}/bank")
    same = load_bank(tmp_path / "bank")
    assert bank.test[0].read_bytes() == same.test[0].read_bytes()
    assert load_bank(f"s3://{BUCKET}/bank/bank.yaml") == bank

    # Another node fetches what it opens, and that alone.
    on_another_node(monkeypatch, tmp_path / "other")
    picture = mirror.at_hand(bank.pairs[0].target)
    assert picture.read_bytes() == same.pairs[0].target.read_bytes()
    assert not local_path(bank.test[0]).exists()

    client_for(endpoint).put_object(Bucket=BUCKET, Key="bank/new.txt", Body=b"x")
    with pytest.raises(StorageError, match=r"s3://collection/bank: it was changed while a run"):
        mirror.at_hand(bank.test[0])
    mirror.pinned.cache_clear()
    assert load_bank(f"s3://{BUCKET}/bank").folder != bank.folder


def test_a_bank_with_a_manifest_is_held_against_it(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "DOWNLOADS", 1)
    write_bank(tmp_path / "bank", ["snow"], pairs=1, general=1, sources=1, test=1)
    put_folder(endpoint, tmp_path / "bank", "bank")
    key = "bank/pairs/snow/0000_target.png"
    content = bytearray((tmp_path / key).read_bytes())
    content[-20] ^= 4
    client_for(endpoint).put_object(Bucket=BUCKET, Key=key, Body=bytes(content))
    with pytest.raises(StorageError, match=f"{key}: damaged"):
        load_bank(f"s3://{BUCKET}/bank")


def test_names_in_a_bucket_cannot_leave_the_mirror(endpoint: str) -> None:
    for key in ("bank/bank.yaml", "bank/../../etc/x"):
        client_for(endpoint).put_object(Bucket=BUCKET, Key=key, Body=b"x")
    with pytest.raises(InputError, match="an object whose name cannot be a path"):
        load_bank(f"s3://{BUCKET}/bank")
