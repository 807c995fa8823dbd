"""What the distillation's tests share."""

import pytest

from tests.unit.distill.halves import Collection


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return Collection(tmp_path_factory.mktemp("collection"))
