"""What the chaos command's drivers are told; killing is tested on a cluster."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline import object_store
from pipeline.addresses import address_problems
from pipeline.config import load_recipe
from pipeline.stages import chaos as stage
from pipeline.stages.chaos import Driver, Outcome, chaos
from tests.s3_server import BUCKET, keys_below, put_folder, s3_server, settings


@pytest.fixture
def drivers(monkeypatch: pytest.MonkeyPatch) -> list[Driver]:
    """Those that would have been started."""
    found: list[Driver] = []

    def run_through(driver: Driver, between: object = None) -> Outcome:
        found.append(driver)
        return Outcome("same", 1.0)

    @contextmanager
    def ground(*_: object) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(address="127.0.0.1:6379")

    monkeypatch.setattr(stage, "run_through", run_through)
    monkeypatch.setattr(stage, "killing_ground", ground)
    return found


def disturb(bank: str, output: str, *overrides: str) -> None:
    Path("r.yaml").write_text(f"{{name: tiny, bank: {bank}, output: {output}}}")
    recipe = load_recipe("r.yaml", list(overrides))
    assert chaos(recipe, "r.yaml", overrides, minutes=0, seed=0, every=20).same


def problems(driver: Driver) -> list[str]:
    """What the driver itself would refuse."""
    given = [
        v for flag, v in zip(driver._command, driver._command[1:], strict=False) if flag == "--set"
    ]
    recipe = load_recipe("r.yaml", given)
    return [str(p) for p in address_problems("r.yaml", recipe, driver._environment)]


def test_relative_paths_mean_what_they_mean_here(
    drivers: list[Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    disturb("my/bank", "runs/x", "bank=another/bank")
    assert len(drivers) == 2
    for driver in drivers:
        assert problems(driver) == []
        assert f"bank={tmp_path}/another/bank" in driver._command
    assert drivers[0].places.output == tmp_path / "runs/x/chaos/undisturbed"
    assert json.loads((tmp_path / "runs/x/chaos/chaos.json").read_text())["same"]


def test_an_output_in_s3_is_there(
    drivers: list[Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with s3_server(tmp_path / "log.txt") as endpoint:
        for name, value in settings(endpoint, tmp_path / "node").items():
            monkeypatch.setenv(name, value)
        object_store.client.cache_clear()
        (tmp_path / "bank").mkdir()
        (tmp_path / "bank" / "bank.yaml").touch()
        put_folder(endpoint, tmp_path / "bank", "bank")
        disturb(f"s3://{BUCKET}/bank", f"s3://{BUCKET}/run/")
        assert [problems(driver) for driver in drivers] == [[], []]
        assert f"output=s3://{BUCKET}/run/chaos/disturbed-0" in drivers[1]._command
        assert f"bank=s3://{BUCKET}/bank" in drivers[1]._command
        assert drivers[1].checkpoint() == 0
        assert keys_below(endpoint, "run/").keys() == {"chaos/chaos.json"}
        object_store.client.cache_clear()
    assert not Path("s3:").exists()
