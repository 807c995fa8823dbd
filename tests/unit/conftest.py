"""What tests of several packages share."""

from collections.abc import Iterator

import pytest

from tests.s3_server import s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of an object store on loopback."""
    with s3_server(tmp_path_factory.mktemp("s3") / "log.txt") as endpoint:
        yield endpoint
