"""The manifests pass KubeRay's schemas and rules and ours; planted mistakes do not."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from pipeline.config import load_recipe
from tests.cluster.kustomize import Resource, build, read
from tests.cluster.manifests import check, overlays
from tests.cluster.mutations import MUTATIONS, Mutation
from tests.cluster.pods import cluster_of, pods_of

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
OVERLAYS = overlays(CLUSTER)
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS, ids=[o.name for o in OVERLAYS])


def text(value: object) -> str:
    return str(yaml.safe_dump(value))


def test_the_manifests_are_right() -> None:
    assert [str(problem) for problem in check(CLUSTER)] == []


def test_the_overlays_are_the_four() -> None:
    assert [o.name for o in OVERLAYS] == ["gpu", "gpu-job", "kind", "kind-job"]
    for overlay in OVERLAYS:
        kinds = [r.kind for r in build(overlay, CLUSTER)]
        ray = "RayJob" if overlay.name.endswith("-job") else "RayCluster"
        assert [kind for kind in kinds if kind.startswith("Ray")] == [ray]


def lets_out(resources: list[Resource], labels: dict[str, str]) -> bool:
    """Whether a policy lets pods with these labels out to any address by HTTPS."""
    for spec in (r.data["spec"] for r in resources if r.kind == "NetworkPolicy"):
        selector = spec["podSelector"]
        wanted = selector.get("matchLabels", {}).items()
        there = {e["key"] for e in selector.get("matchExpressions", [])}
        if wanted <= labels.items() and there <= labels.keys():
            anywhere = [rule["ports"] for rule in spec.get("egress", []) if "to" not in rule]
            if any({"port": 443, "protocol": "TCP"} in ports for ports in anywhere):
                return True
    return False


@pytest.mark.parametrize("overlay", [o.name for o in OVERLAYS])
def test_rays_pods_get_out_where_that_is_asked_for(overlay: str, tmp_path: Path) -> None:
    worker = {"ray.io/cluster": "collectionlora", "ray.io/node-type": "worker"}
    assert not lets_out(build(CLUSTER / "overlays" / overlay, CLUSTER), worker)
    root = tmp_path / "cluster"
    shutil.copytree(CLUSTER, root)
    file = root / "overlays" / overlay / "kustomization.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["components"] = [*settings.get("components", []), "../../egress"]
    file.write_text(yaml.safe_dump(settings))
    assert [str(problem) for problem in check(root)] == []
    resources = build(file.parent, root)
    assert lets_out(resources, worker)
    assert not lets_out(resources, {"app.kubernetes.io/name": "redis"})


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[m.name for m in MUTATIONS])
def test_a_planted_mistake_is_named(mutation: Mutation, tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    shutil.copytree(CLUSTER, root)
    documents = read(root / mutation.file)
    mutation.change(documents)
    (root / mutation.file).write_text(yaml.safe_dump_all(documents))
    found = [str(problem) for problem in check(root)]
    places = [line.split(": ")[:2] for line in found]
    assert [mutation.named_in, True] in [[f, mutation.field in g] for f, g in places], found
    # A mistake is reported as itself, at most once for every pod that it is in.
    assert len(found) <= 10, found


def test_mutations_are_as_many_as_asked() -> None:
    assert len(MUTATIONS) >= 30
    assert len({m.name for m in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.parametrize(
    "content", ["a: 1\na: 2\n", "a: [1\n", "resources: [nothing.yaml]\n", "namePrefix: x\n"]
)
def test_a_broken_kustomization_is_reported(content: str, tmp_path: Path) -> None:
    root = tmp_path / "cluster"
    shutil.copytree(CLUSTER, root)
    (root / "base/kustomization.yaml").write_text(content)
    assert any("base/kustomization.yaml" in str(problem) for problem in check(root))


def everything() -> list[Resource]:
    return [resource for overlay in OVERLAYS for resource in build(overlay, CLUSTER)]


def test_every_secret_is_explained() -> None:
    named = set(
        re.findall(
            r"(?:secretKeyRef|secretRef):\n(?: +key: .*\n)?\s+name: (\S+)",
            "".join(text(resource.data) for resource in everything()),
        )
    )
    named |= {str(c["authOptions"]["secretName"]) for r in everything() if (c := cluster_of(r))}
    readme = (CLUSTER / "README.md").read_text()
    made = set(re.findall(r"create secret generic (\S+)", readme))
    assert named
    assert named == made


def test_the_drain_fits_into_every_workers_grace() -> None:
    script = (CLUSTER / "drain.sh").read_text()
    (seconds,) = re.findall(r"seconds=\$\{1:-(\d+)\}", script)
    (grace,) = re.findall(r"ray stop --grace-period (\d+)", script)
    for resource in everything():
        for pod in pods_of(resource):
            if pod.role == "worker":
                assert pod.spec["terminationGracePeriodSeconds"] >= int(seconds) + int(grace) + 5


def test_the_cluster_recipe_is_the_demo_elsewhere() -> None:
    demo = load_recipe(ROOT / "pipeline/recipes/demo.yaml")
    recipe = load_recipe(ROOT / "pipeline/recipes/cluster.yaml")
    places = {"bank", "output", "cluster", "tracking"}
    assert recipe.model_dump(exclude=places) == demo.model_dump(exclude=places)
    hosts = build(CLUSTER / "overlays/kind", CLUSTER)
    (settings,) = (r.data["data"] for r in hosts if r.name == "mlflow-settings")
    assert recipe.tracking.uri is not None
    host = recipe.tracking.uri.removeprefix("http://")
    assert host in settings["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert recipe.output.startswith("/runs/")
    assert recipe.bank.startswith("/runs/")
