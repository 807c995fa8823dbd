"""Ray's own reading of the manifests: what its autoscaler will offer, and whether recipes fit."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_recipe
from tests.cluster.kustomize import build
from tests.cluster.pods import cluster_of
from tests.cluster.test_manifests import CLUSTER, OVERLAYS, ROOT, each_overlay

GIB = 2**30


def node_types(overlay: Path, caplog: pytest.LogCaptureFixture) -> dict[str, dict[str, Any]]:
    """Node types by group, as Ray's KubeRay provider derives them from the RayCluster."""
    from ray.autoscaler._private.kuberay import autoscaling_config

    (cluster,) = (c for r in build(overlay, CLUSTER) if (c := cluster_of(r)))
    resource = {"metadata": {"name": "c", "namespace": "n"}, "spec": cluster}
    with caplog.at_level(logging.WARNING):
        config = autoscaling_config._derive_autoscaling_config_from_ray_cr(resource)
    # The provider warns of what is given in two places.
    assert [record.message for record in caplog.records] == []
    types: dict[str, dict[str, Any]] = config["available_node_types"]
    return types


def fits(asked: Mapping[str, float], offered: Mapping[str, float]) -> bool:
    return all(offered.get(name, 0) >= amount for name, amount in asked.items())


@each_overlay
def test_groups_offer_what_they_are_for(overlay: Path, caplog: pytest.LogCaptureFixture) -> None:
    types = node_types(overlay, caplog)
    assert types["headgroup"]["resources"]["CPU"] == 0
    gpus = 1 if overlay.name.startswith("gpu") else None
    for group in ("student", "teacher"):
        assert types[group]["resources"][group] == 1
        assert types[group]["resources"].get("GPU") == gpus
        assert types[group]["resources"]["memory"] >= 4 * GIB
        assert types[group]["min_workers"] == 0
    assert types["teacher"]["idle_timeout_s"] < types["student"]["idle_timeout_s"]
    # A preemptible node must not be where the driver, the encoders or the student go.
    others = {"driver", "encode", "student"}
    assert not others & set(types["teacher"]["resources"])


@each_overlay
def test_a_job_driver_fits_on_the_cpu_group(
    overlay: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [r.data["spec"] for r in build(overlay, CLUSTER) if r.kind == "RayJob"]
    types = node_types(overlay, caplog)
    for job in jobs:
        asked = json.loads(job["entrypointResources"]) | {"CPU": job["entrypointNumCpus"]}
        assert [name for name, t in types.items() if fits(asked, t["resources"])] == ["cpu"]


def test_the_cluster_recipe_fits_the_miniature_cluster(caplog: pytest.LogCaptureFixture) -> None:
    settings = load_recipe(ROOT / "pipeline/recipes/cluster.yaml").cluster
    types = node_types(CLUSTER / "overlays/kind", caplog)
    group = settings.student_group
    parts = {
        "cpu": (settings.encoder_pool, settings.encoder_pool.max),
        "teacher": (settings.teacher_pool, settings.teacher_pool.max),
        "student": (group, group.logical_ranks),
    }
    assert OVERLAYS
    for name, (part, count) in parts.items():
        asked = {"CPU": part.num_cpus, "GPU": part.num_gpus} | part.resources
        assert [n for n, t in types.items() if fits(asked, t["resources"])] == [name]
        each = min(
            types[name]["resources"][key] // amount for key, amount in part.resources.items()
        )
        assert each * types[name]["max_workers"] >= count
