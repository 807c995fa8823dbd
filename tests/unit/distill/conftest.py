"""What the distillation's tests share."""

import pytest

from tests.unit.distill.halves import Collection
from tests.unit.tiny import SHAPES


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return Collection(tmp_path_factory.mktemp("collection"))


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Three buckets: one and two sources, sources of other shapes than the edit."""
    buckets = (SHAPES, ((1, 2, 2), (1, 2, 1)), ((1, 3, 1), (1, 1, 3), (1, 2, 1)))
    return Collection(tmp_path_factory.mktemp("mixed"), buckets)
