"""One small Ray for all of this folder's tests."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def ray_cluster() -> Iterator[None]:
    """Four logical CPUs and a GPU, whatever the machine has, and resources to place actors by."""
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "600")
    os.environ.setdefault("RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S", "60")
    import ray

    ray.init(
        address="local",
        num_cpus=4,
        num_gpus=1,
        resources={"teacher": 2, "student": 2},
        include_dashboard=False,
        log_to_driver=False,
        logging_level="warning",
        namespace="collectionlora",
    )
    yield
    ray.shutdown()
