"""Addresses in recipes: allowed schemes, and what a cluster's other nodes can see."""

from pathlib import Path

import pytest

from pipeline import addresses
from pipeline.addresses import address_problems
from pipeline.config import Recipe
from pipeline.object_store import Entry
from pipeline.problems import Problem, StorageError

ALONE: dict[str, str] = {}
CLUSTER = {"RAY_ADDRESS": "http://head:8265"}


def recipe(**changes: object) -> Recipe:
    given = {"name": "r", "bank": "/bank", "output": "/out", "model": {"path": "/model"}} | changes
    return Recipe.model_validate(given)


def found(environment: dict[str, str] = ALONE, **changes: object) -> list[Problem]:
    return list(address_problems("r.yaml", recipe(**changes), environment))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which buckets were asked for; ``missing`` is not there, ``dead`` does not answer."""
    asked: list[str] = []

    def listing(bucket: str, prefix: str) -> list[Entry]:
        asked.append(bucket)
        if bucket == "missing":
            raise StorageError(f"s3://{bucket}/: no such bucket; create it")
        if bucket == "dead":
            raise StorageError(f"s3://{bucket}/: the object store does not answer; start it")
        return []

    monkeypatch.setattr(addresses.object_store, "listing", listing)
    return asked


@pytest.mark.parametrize(
    "changes",
    [
        {"bank": "bank", "output": "runs/x"},
        {"bank": "file:///bank", "output": "s3://bucket/run"},
        {"bank": "s3://bucket", "output": "s3://bucket/run"},
        {"model": {"path": "s3://bucket/model"}},
        {"model": {"path": "hf://owner/name@main"}},
        {"tracking": {"uri": "http://mlflow:5000"}},
        {"tracking": {"uri": "sqlite:////runs/mlflow.db"}},
        {"tracking": {"uri": "postgresql+psycopg2://user@host/db"}},
    ],
)
def test_good_addresses_pass(changes: dict[str, object], listed: list[str]) -> None:
    assert found(**changes) == []


@pytest.mark.parametrize(
    ("changes", "field", "says"),
    [
        ({"bank": "gs://bucket/bank"}, "bank", "gs:// is not read or written"),
        ({"output": "http://host/run"}, "output", "http:// is not read or written"),
        ({"output": "s3://bucket"}, "output", "a whole bucket"),
        ({"output": "s3://bucket/a/../b"}, "output", "'..'"),
        ({"bank": "s3://Bucket_/x"}, "bank", "3 to 63"),
        ({"bank": "s3://missing/x"}, "bank", "no such bucket"),
        ({"model": {"path": "http://host/model"}}, "model.path", "http:// is not read"),
        ({"model": {"path": "file:///model"}}, "model.path", "file:// is not read"),
        ({"tracking": {"uri": "databricks://x"}}, "tracking.uri", "no store"),
        ({"tracking": {"uri": "./mlruns"}}, "tracking.uri", "no store"),
        ({"tracking": {"uri": "http://u:secret@host"}}, "tracking.uri", "a password"),
    ],
)
def test_a_wrong_address_is_named_with_a_remedy(
    changes: dict[str, object], field: str, says: str, listed: list[str]
) -> None:
    (problem,) = found(**changes)
    assert problem.field == field and says in problem.what and problem.remedy
    assert "secret" not in str(problem)


@pytest.mark.parametrize("field", ["bank", "output"])
@pytest.mark.parametrize("path", ["runs/x", "file://runs/x"])
def test_a_relative_path_is_refused_where_nodes_start_elsewhere(field: str, path: str) -> None:
    (problem,) = found(CLUSTER, **{field: path})
    assert problem.field == field and "relative" in problem.what
    for alone in (ALONE, {"RAY_ADDRESS": ""}, {"RAY_ADDRESS": "local"}):
        assert found(alone, **{field: path}) == []
    assert found(CLUSTER, **{field: str(Path("/") / "shared" / field)}) == []


def test_a_store_that_does_not_answer_is_no_mistake_of_the_recipe(listed: list[str]) -> None:
    with pytest.raises(StorageError, match="does not answer"):
        found(bank="s3://dead/bank")
    assert listed == ["dead"]
