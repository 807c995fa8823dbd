"""All that is wrong with the folder ``cluster/``, in one report."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.problems import InputError, Problem
from tests.cluster.kustomize import Resource, build
from tests.cluster.pods import SECRET_NAME, SECRET_TEXT, Pod, pod_problems, pods_of
from tests.cluster.rules import ray_problems
from tests.cluster.schema import schema_problems


def overlays(root: Path) -> list[Path]:
    return sorted(p.parent for p in (root / "overlays").glob("*/kustomization.yaml"))


def check(root: Path) -> list[Problem]:
    """What is wrong with every overlay below ``root``, each mistake once."""
    problems: dict[str, Problem] = {}
    for overlay in overlays(root):
        try:
            found = check_resources(build(overlay, root))
        except InputError as error:
            found = error.problems
        problems |= {str(problem): problem for problem in found}
    return list(problems.values())


def check_resources(resources: Sequence[Resource]) -> list[Problem]:
    """What is wrong with the objects of one overlay; rules only where the schemas hold."""
    problems = [problem for resource in resources for problem in schema_problems(resource)]
    if problems:
        return problems
    for resource in resources:
        problems += secret_problems(resource)
        problems += ray_problems(resource)
        for pod in pods_of(resource):
            problems += pod_problems(pod)
    return problems + list(set_problems(resources))


def secret_problems(resource: Resource) -> Iterator[Problem]:
    if resource.kind != "ConfigMap":
        return
    for key, text in resource.data["data"].items():
        if SECRET_TEXT.search(text) or SECRET_NAME.search(key):
            what = "a secret in the manifest"
            yield Problem(resource.file, f"data.{key}", None, what, "put it into a secret")


def set_problems(resources: Sequence[Resource]) -> Iterator[Problem]:
    """What only shows in all objects together."""
    for (kind, name), count in Counter((r.kind, r.name) for r in resources).items():
        if count > 1:
            file = next(r.file for r in resources if (r.kind, r.name) == (kind, name))
            yield Problem(file, "metadata.name", name, f"{count} of kind {kind}", "rename one")
    names = {kind: {r.name for r in resources if r.kind == kind} for kind in _named(resources)}
    pods = [pod for resource in resources for pod in pods_of(resource)]
    for pod in pods:
        yield from _missing(pod, names)
    yield from _service_problems(resources, pods)
    denied = [
        r
        for r in resources
        if r.kind == "NetworkPolicy"
        and r.data["spec"]["podSelector"] == {}
        and set(r.data["spec"]["policyTypes"]) == {"Ingress", "Egress"}
        and not {"ingress", "egress"} & set(r.data["spec"])
    ]
    if not denied:
        what = "no policy that denies all traffic, both ways, to all pods"
        yield Problem("base/network.yaml", "spec.policyTypes", None, what, "add it")


def _named(resources: Sequence[Resource]) -> set[str]:
    return {r.kind for r in resources} | {"ConfigMap", "PersistentVolumeClaim"}


def _missing(pod: Pod, names: dict[str, set[str]]) -> Iterator[Problem]:
    """Claims and settings that a pod names and nobody makes."""
    for i, volume in enumerate(pod.spec.get("volumes", [])):
        for field, key, kind in (
            ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
            ("configMap", "name", "ConfigMap"),
        ):
            name = volume.get(field, {}).get(key)
            if name is not None and name not in names[kind]:
                place = f"spec.volumes.{i}.{field}.{key}"
                yield pod.problem(place, name, f"no such {kind}", "add it, or correct the name")
    for i, container in enumerate(pod.spec["containers"]):
        for j, source in enumerate(container.get("envFrom", [])):
            name = source.get("configMapRef", {}).get("name")
            if name is not None and name not in names["ConfigMap"]:
                place = f"spec.containers.{i}.envFrom.{j}.configMapRef.name"
                yield pod.problem(place, name, "no such ConfigMap", "add it")


def _service_problems(resources: Sequence[Resource], pods: Sequence[Pod]) -> Iterator[Problem]:
    labels = [pod.template.get("metadata", {}).get("labels", {}) for pod in pods]
    for resource in resources:
        spec: dict[str, Any] = resource.data.get("spec", {})
        if resource.kind == "Service":
            selector, field = spec.get("selector", {}), "spec.selector"
        elif resource.kind == "Deployment":
            selector, field = spec["selector"].get("matchLabels", {}), "spec.selector.matchLabels"
            own = spec["template"].get("metadata", {}).get("labels", {})
            if selector.items() - own.items():
                what = "its own pods do not have these labels"
                yield Problem(resource.file, field, selector, what, "make them equal")
            continue
        else:
            continue
        if not selector or not any(selector.items() <= own.items() for own in labels):
            yield Problem(resource.file, field, selector, "no pod has these labels", "correct it")
