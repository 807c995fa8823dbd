"""A store that dies is named while it is dead, once, and again when it is back."""

import time
from pathlib import Path

import pytest

from actors.store_probe import store_probed
from pipeline import object_store
from pipeline.mirror import local_path
from tests.s3_proxy import s3_proxy
from tests.s3_server import BUCKET, s3_server, settings


def wait_for(said: list[str], count: int) -> None:
    deadline = time.monotonic() + 30
    while len(said) < count and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(said) == count, said


def test_a_dead_store_is_named_and_so_is_its_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    with s3_server(tmp_path / "log.txt") as server, s3_proxy(server, {}) as (endpoint, proxy):
        for name, value in settings(endpoint, tmp_path / "cache").items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        try:
            with store_probed(local_path(f"s3://{BUCKET}/run"), said.append, every=0.05):
                time.sleep(1)
                assert said == []
                proxy.chances = {"refuse": 1.0}
                wait_for(said, 1)
                assert endpoint in said[0] and "goes on from here" in said[0]
                time.sleep(1)
                proxy.chances = {}
                wait_for(said, 2)
                assert "answers again" in said[1]
        finally:
            object_store.client.cache_clear()


def test_a_local_disk_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(object_store, "trouble", lambda *place: asked.append(place))
    with store_probed(tmp_path, every=0.01):
        time.sleep(0.1)
    assert asked == []
    with store_probed(local_path(f"s3://{BUCKET}/run"), every=0.01):
        time.sleep(0.1)
    assert asked[0] == (BUCKET, "run")
