"""An object store that refuses, dawdles, cuts and garbles: right bytes, or an error by name."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline import mirror, object_store, tensor_store
from pipeline.cli import main
from pipeline.mirror import local_path
from pipeline.problems import StorageError
from pipeline.storage import atomic_folder, folder_is_whole, write_atomic
from pipeline.tensor_store import TensorStore, stored_keys, write_part
from tests.s3_proxy import s3_proxy
from tests.s3_server import BUCKET, keys_below, settings

RUN = f"s3://{BUCKET}/run"


def use(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    for name, value in settings(endpoint, cache).items():
        monkeypatch.setenv(name, value)
    object_store.client.cache_clear()


@pytest.fixture(autouse=True)
def _forget_the_client() -> Iterator[None]:
    yield
    object_store.client.cache_clear()


def test_the_bytes_come_right_through_a_bad_store(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Waiting is what is not tested here.
    monkeypatch.setattr(object_store.random, "uniform", lambda low, high: 0.01)
    chances = {"refuse": 0.15, "slow": 0.02, "cut": 0.15, "flip": 0.1}
    with s3_proxy(server, chances, seed=1) as (endpoint, proxy):
        use(monkeypatch, endpoint, tmp_path / "a")
        content = torch.randint(0, 256, (300_000,), dtype=torch.uint8).numpy().tobytes()
        for i in range(6):
            write_atomic(f"{RUN}/{i}.bin", content[: 50_000 * i])
        with atomic_folder(f"{RUN}/student") as folder:
            (folder / "weights").write_bytes(content)
        cache = local_path(f"{RUN}/cache")
        write_part(cache, [("a", torch.arange(1000.0))])
        write_part(cache, [("b", torch.arange(2000.0))])
        monkeypatch.setenv("COLLECTIONLORA_CACHE", str(tmp_path / "b"))
        for i in range(6):
            path = mirror.at_hand(f"{RUN}/{i}.bin")
            assert path.read_bytes() == content[: 50_000 * i]
        there = local_path(f"{RUN}/student")
        mirror.pull(there)
        assert folder_is_whole(there, contents=True)
        assert stored_keys(local_path(cache)) == {"a", "b"}
        assert torch.equal(TensorStore([local_path(cache)]).get("b"), torch.arange(2000.0))
        assert min(proxy.done[name] for name in ("refuse", "cut", "flip")) >= 2, proxy.done


def test_a_store_that_always_refuses_is_named(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(object_store, "ATTEMPTS", 2)
    with s3_proxy(server, {"refuse": 1.0}) as (endpoint, _):
        use(monkeypatch, endpoint, tmp_path)
        with pytest.raises(StorageError) as refused:
            write_atomic(f"{RUN}/a", b"x")
    text = str(refused.value)
    assert f"{RUN}/a" in text and endpoint in text
    assert "503" in text and "goes on from here" in text


def test_a_dead_store_ends_a_command_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the waits as they are: it must be over within a minute."""
    with s3_proxy("http://127.0.0.1:9", {}) as (endpoint, _):
        pass  # a port where nobody listens any more
    use(monkeypatch, endpoint, tmp_path / "cache")
    recipe = tmp_path / "r.yaml"
    recipe.write_text(f"{{name: tiny, bank: s3://{BUCKET}/bank, output: {RUN}}}")
    started = time.monotonic()
    assert main(["run", str(recipe)]) == 1
    assert time.monotonic() - started < 60
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(f"error: s3://{BUCKET}/bank") and endpoint in line
    assert "does not answer" in line and "AWS_ENDPOINT_URL" in line
    assert not (tmp_path / "cache" / "collectionlora-s3").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials"),
        ({"AWS_PROFILE": "nobody"}, "the S3 settings cannot be used"),
    ],
)
def test_missing_settings_are_named(
    server: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    said: str,
) -> None:
    use(monkeypatch, server, tmp_path)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name, value in change.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    with pytest.raises(StorageError, match=said):
        write_atomic(f"{RUN}/a", b"x")


def test_a_bucket_that_is_not_there_is_named(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, server, tmp_path)
    with pytest.raises(StorageError, match="s3://no-such-one/a: no such bucket; create it"):
        write_atomic("s3://no-such-one/a", b"x")


def test_a_network_that_fails_costs_no_part(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow has one exception for it and for damage, and boto3 may be well the next moment."""
    use(monkeypatch, server, tmp_path / "a")
    write_part(local_path(f"{RUN}/spared"), [("a", torch.arange(9.0))])
    use(monkeypatch, server, tmp_path / "b")
    there, read_table = local_path(f"{RUN}/spared"), tensor_store.pq.read_table
    names = keys_below(server, "run/spared/")

    def fail(part: object, **options: object) -> object:
        if options.get("filesystem"):
            raise OSError("AWS Error NETWORK_CONNECTION during GetObject: curlCode: 28")
        return read_table(part, **options)

    monkeypatch.setattr(tensor_store.pq, "read_table", fail)
    with s3_proxy("http://127.0.0.1:9", {}) as (endpoint, _):
        pass  # a port where nobody listens any more
    with monkeypatch.context() as patch:
        patch.setattr(mirror, "names", lambda folder: list(names))
        use(patch, endpoint, tmp_path / "b")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        for look in (stored_keys, lambda folder: TensorStore([folder])):
            with pytest.raises(StorageError, match="does not answer"):
                look(there)
    use(monkeypatch, server, tmp_path / "b")
    assert keys_below(server, "run/spared/").keys() == names.keys()
    assert stored_keys(there) == {"a"}
    assert torch.equal(TensorStore([there]).get("a"), torch.arange(9.0))


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("ExpiredToken", 400),
        ("ExpiredTokenException", 400),
        ("RequestExpired", 400),
        ("InvalidToken", 400),
        ("ExpiredToken", 403),
        ("400", 400),  # of a HEAD
    ],
)
def test_expired_credentials_are_named(code: str, status: int) -> None:
    from botocore.exceptions import ClientError

    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    said = pytest.raises(StorageError, match=r"s3://b/k: .*expired.*; renew them")
    with said, object_store.s3_errors("b", "k"):
        raise ClientError(answer, "PutObject")
