"""What every pod here must keep to: restricted, read-only, without secrets, sized, consistent."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.problems import Problem
from tests.cluster.kustomize import Resource

SECRET_NAME = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|API_KEY|CREDENTIAL", re.IGNORECASE)
# A password in an address, an option or a setting; `$NAME` and `$(NAME)` stand for the environment.
SECRET_TEXT = re.compile(
    r"://[^/\s:@]+:[^$/\s@][^/\s@]*@"
    r"|(?i:(?:password|requirepass|secret|token|access_key)\s*[=: ]\s*[^\s$<{]{3,})"
    r"|\bAKIA[0-9A-Z]{16}\b"
)
OPEN = {"hostNetwork", "hostPID", "hostIPC"}


@dataclass(frozen=True)
class Pod:
    """A pod template within an object; ``role`` is head, worker, submitter or service."""

    resource: Resource
    place: str
    role: str
    template: dict[str, Any]

    @property
    def spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.template["spec"]
        return spec

    def problem(self, field: str, value: object, what: str, remedy: str) -> Problem:
        return Problem(self.resource.file, f"{self.place}.{field}", value, what, remedy)


def cluster_place(resource: Resource) -> str:
    """Where an object holds a Ray cluster's spec."""
    return "spec" if resource.kind == "RayCluster" else "spec.rayClusterSpec"


def cluster_of(resource: Resource) -> dict[str, Any] | None:
    """The Ray cluster's spec in a RayCluster or RayJob."""
    if resource.kind not in ("RayCluster", "RayJob"):
        return None
    spec = resource.data["spec"]
    found: dict[str, Any] | None = spec if resource.kind == "RayCluster" else None
    return found or spec.get("rayClusterSpec")


def pods_of(resource: Resource) -> Iterator[Pod]:
    """All pod templates of an object whose schema is right."""
    if resource.kind == "Deployment":
        yield Pod(resource, "spec.template", "service", resource.data["spec"]["template"])
    if resource.kind == "RayJob" and "submitterPodTemplate" in resource.data["spec"]:
        template = resource.data["spec"]["submitterPodTemplate"]
        yield Pod(resource, "spec.submitterPodTemplate", "submitter", template)
    cluster = cluster_of(resource)
    if cluster is not None:
        place = cluster_place(resource)
        yield Pod(
            resource,
            f"{place}.headGroupSpec.template",
            "head",
            cluster["headGroupSpec"]["template"],
        )
        for i, group in enumerate(cluster.get("workerGroupSpecs", [])):
            yield Pod(
                resource, f"{place}.workerGroupSpecs.{i}.template", "worker", group["template"]
            )


def pod_problems(pod: Pod) -> Iterator[Problem]:
    """What is wrong with a pod template."""
    spec, security = pod.spec, pod.spec.get("securityContext", {})
    place = "spec.securityContext"
    if security.get("runAsNonRoot") is not True:
        value = security.get("runAsNonRoot")
        yield pod.problem(f"{place}.runAsNonRoot", value, "the pod may run as root", "set true")
    if not security.get("runAsUser"):
        value = security.get("runAsUser")
        yield pod.problem(f"{place}.runAsUser", value, "no user but root", "give a number above 0")
    if security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        what = "no seccomp profile"
        yield pod.problem(f"{place}.seccompProfile.type", None, what, "set RuntimeDefault")
    for field in OPEN & set(spec):
        if spec[field]:
            yield pod.problem(f"spec.{field}", True, "shares a namespace of the node", "remove it")
    needs_token, token = pod.role == "head", spec.get("automountServiceAccountToken")
    if token is not needs_token:
        what = "the autoscaler needs the token" if needs_token else "a token that nothing needs"
        field = "spec.automountServiceAccountToken"
        yield pod.problem(field, token, what, f"set {str(needs_token).lower()}")
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    for i, volume in enumerate(spec.get("volumes", [])):
        if "hostPath" in volume:
            what = "a folder of the node"
            yield pod.problem(f"spec.volumes.{i}.hostPath", None, what, "use a claim or emptyDir")
    if not spec["containers"]:
        yield pod.problem("spec.containers", None, "no container", "add one")
    for kind in ("initContainers", "containers"):
        for i, container in enumerate(spec.get(kind, [])):
            for field, value, what, remedy in container_problems(container):
                yield pod.problem(f"spec.{kind}.{i}.{field}", value, what, remedy)
            for j, mount in enumerate(container.get("volumeMounts", [])):
                if mount["name"] not in volumes:
                    field = f"spec.{kind}.{i}.volumeMounts.{j}.name"
                    what = "no such volume in the pod"
                    yield pod.problem(field, mount["name"], what, f"one of {', '.join(volumes)}")


Finding = tuple[str, object, str, str]


def container_problems(container: dict[str, Any]) -> Iterator[Finding]:
    """(field, value, what, remedy) of a container, or of the autoscaler's options."""
    yield from security_problems(container)
    image = container.get("image", "")
    tag = image.rpartition("/")[2].partition(":")[2]
    if tag in ("", "latest") and "@sha256:" not in image:
        yield "image", image, "no fixed version", "add a tag other than latest, or a digest"
    mounts = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
    if "collectionlora" in image and "/tmp" not in mounts:
        yield "volumeMounts", mounts, "nowhere to write (HOME, Ray's sessions)", "mount /tmp"


def security_problems(container: dict[str, Any]) -> Iterator[Finding]:
    """Of what every container has: its rights, its size, what it is told."""
    security, place = container.get("securityContext", {}), "securityContext"
    for field, wanted in (("readOnlyRootFilesystem", True), ("allowPrivilegeEscalation", False)):
        if security.get(field) is not wanted:
            remedy = f"set {str(wanted).lower()}"
            yield f"{place}.{field}", security.get(field), "not a restricted container", remedy
    if "ALL" not in security.get("capabilities", {}).get("drop", []):
        yield f"{place}.capabilities.drop", None, "keeps capabilities", "drop [ALL]"
    if security.get("capabilities", {}).get("add"):
        value = security["capabilities"]["add"]
        yield f"{place}.capabilities.add", value, "adds capabilities", "remove it"
    if security.get("privileged"):
        yield f"{place}.privileged", True, "a privileged container", "remove it"
    if security.get("runAsNonRoot") is False or security.get("runAsUser") == 0:
        yield f"{place}.runAsUser", security.get("runAsUser"), "runs as root", "remove it"
    resources = container.get("resources", {})
    for kind, name in (("requests", "cpu"), ("requests", "memory"), ("limits", "memory")):
        if name not in resources.get(kind, {}):
            yield f"resources.{kind}.{name}", None, "not sized", "give an amount"
    gpus = [resources.get(kind, {}).get("nvidia.com/gpu") for kind in ("requests", "limits")]
    if gpus[0] != gpus[1]:
        field = "resources.limits.nvidia.com/gpu"
        yield field, gpus[1], "GPUs are whole: request and limit differ", f"set {gpus[0]}"
    for i, variable in enumerate(container.get("env", [])):
        if "value" in variable and SECRET_NAME.search(variable["name"]):
            remedy = "use valueFrom.secretKeyRef"
            yield f"env.{i}.value", variable["name"], "a secret in the manifest", remedy
    for part in ("command", "args"):
        for i, text in enumerate(container.get(part, [])):
            if SECRET_TEXT.search(text):
                yield f"{part}.{i}", None, "a secret in the manifest", "read it from a secret"
    for i, variable in enumerate(container.get("env", [])):
        if SECRET_TEXT.search(variable.get("value", "")):
            yield f"env.{i}.value", variable["name"], "a secret in the manifest", "use a secret"
