"""KubeRay's own rules, which its schemas do not say, and ours for a Ray cluster and a RayJob.

The operator checks its rules only when an object is there, and says so in an event that is easily
missed; so each is checked here, by field.
"""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.problems import Problem
from tests.cluster.kustomize import Resource
from tests.cluster.pods import Finding, cluster_of, cluster_place, security_problems

TOKEN_AUTH = (2, 52, 0)
SECONDS_TO_DRAIN = 20
# What a shell leaves alone: after a backslash, within single quotes, within double ones.
QUOTED = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*\"""")
CONSTRAINTS = Path(__file__).parents[2] / "cluster" / "constraints.txt"
PREEMPTIBLE = {
    "cloud.google.com/gke-spot",
    "kubernetes.azure.com/scalesetpriority",
    "karpenter.sh/capacity-type",
}


def ray_problems(resource: Resource) -> Iterator[Problem]:
    """What is wrong with a RayCluster or RayJob whose schema is right."""
    findings: list[Finding] = []
    if resource.kind == "RayJob":
        if len(resource.name) > 47:
            what = "too long for the names that the operator makes of it"
            findings.append(("metadata.name", resource.name, what, "at most 47 characters"))
        found = job_findings(resource.data["spec"])
        findings += [(f"spec.{field}", *rest) for field, *rest in found]
    cluster, place = cluster_of(resource), cluster_place(resource)
    if cluster is not None:
        parts = [*cluster_findings(cluster), *head_findings(cluster), *fault_findings(cluster)]
        for i, group in enumerate(cluster.get("workerGroupSpecs", [])):
            for field, *rest in group_findings(group, cluster):
                parts.append((f"workerGroupSpecs.{i}.{field}", *rest))
        findings += [(f"{place}.{field}", *rest) for field, *rest in parts]
    for field, value, what, remedy in findings:
        yield Problem(resource.file, field, value, what, remedy)


def job_findings(spec: dict[str, Any]) -> Iterator[Finding]:
    """Of a RayJob's own fields."""
    selector = spec.get("clusterSelector")
    if not spec.get("rayClusterSpec") and not selector:
        yield "rayClusterSpec", None, "a job without a cluster", "give rayClusterSpec"
    if selector and spec.get("backoffLimit", 0) > 0:
        what = "no retries on a cluster that the job does not own (clusterSelector)"
        yield "backoffLimit", spec["backoffLimit"], what, "set 0, or give rayClusterSpec instead"
    if selector and spec.get("suspend"):
        yield "suspend", True, "not with clusterSelector", "remove it"
    if spec.get("shutdownAfterJobFinishes") is not True:
        value = spec.get("shutdownAfterJobFinishes")
        yield "shutdownAfterJobFinishes", value, "the cluster would stay", "set true"
    for field in ("backoffLimit", "ttlSecondsAfterFinished"):
        if spec.get(field, 0) < 0:
            yield field, spec[field], "below 0", "give 0 or more"
    mode = spec.get("submissionMode", "K8sJobMode")
    if mode not in ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"):
        yield "submissionMode", mode, "no such mode", "use K8sJobMode"
    if mode == "SidecarMode" and "submitterPodTemplate" in spec:
        yield "submitterPodTemplate", None, "not in SidecarMode", "use K8sJobMode"
    if mode == "K8sJobMode" and "submitterPodTemplate" not in spec:
        what = "the operator's own submitter pod is not restricted"
        yield "submitterPodTemplate", None, what, "give one"
    if not spec.get("entrypoint", "").strip():
        yield "entrypoint", None, "a job without a command", "name it"
    yield from entrypoint_findings(spec.get("entrypoint", ""))
    yield from driver_findings(spec)


def entrypoint_findings(text: str) -> Iterator[Finding]:
    """The operator puts it, unquoted, behind ``ray job submit ... --`` in a line of bash."""
    remedy = "write bash -c '...'"
    try:
        shlex.split(text)
    except ValueError as error:
        yield "entrypoint", text, f"not a line of a shell: {error}", remedy
        return
    if re.search(r"[;&|()<>\n]", QUOTED.sub("", text.strip())):
        what = "the submitter's shell would take a part of it for itself"
        yield "entrypoint", text, what, remedy


def driver_findings(spec: dict[str, Any]) -> Iterator[Finding]:
    """The driver belongs on a worker, and some group must have what it asks for."""
    text, cpus = spec.get("entrypointResources", ""), spec.get("entrypointNumCpus", 0)
    try:
        asked = {"CPU": cpus} | json.loads(text)
    except (ValueError, TypeError):
        what = "not a JSON object of amounts; the driver would run on the head"
        yield "entrypointResources", text, what, """write '{"driver": 1}'"""
        return
    groups = spec.get("rayClusterSpec", {}).get("workerGroupSpecs", [])
    offers = [group.get("resources", {}) for group in groups]
    if cpus <= 0:
        yield "entrypointNumCpus", cpus, "the driver would run on the head", "set 1"
    if not any(all(float(o.get(k, 0)) >= v for k, v in asked.items()) for o in offers):
        what = "no worker group has what the driver asks for"
        yield "entrypointResources", text, what, "add it to a group's resources"


def cluster_findings(cluster: dict[str, Any]) -> Iterator[Finding]:
    """Of a cluster as a whole."""
    options = cluster.get("autoscalerOptions", {})
    if cluster.get("enableInTreeAutoscaling") is not True:
        value = cluster.get("enableInTreeAutoscaling")
        yield "enableInTreeAutoscaling", value, "the cluster would not grow", "set true"
    for field, *rest in security_problems(options):
        yield (f"autoscalerOptions.{field}", *rest)
    if options.get("idleTimeoutSeconds", 0) < 0:
        value = options["idleTimeoutSeconds"]
        yield "autoscalerOptions.idleTimeoutSeconds", value, "below 0", "give 0 or more"
    if any(e["name"] == "KUBERAY_GEN_AUTOSCALER_START_CMD" for e in options.get("env", [])):
        yield "autoscalerOptions.env", None, "that variable is the operator's", "remove it"
    version = cluster.get("rayVersion", "")
    pinned = re.search(r"^ray==(\S+)$", CONSTRAINTS.read_text(), re.MULTILINE)
    assert pinned is not None
    if version != pinned[1]:
        yield "rayVersion", version, "not the image's Ray", f"set {pinned[1]}"
    auth = cluster.get("authOptions", {})
    if auth.get("mode") != "token":
        what = "anyone who reaches the dashboard could run code"
        yield "authOptions.mode", auth.get("mode"), what, "set token"
    elif tuple(int(n) for n in re.findall(r"\d+", version)[:3]) < TOKEN_AUTH:
        yield "rayVersion", version, "token authentication needs Ray 2.52.0", "use a later Ray"
    if auth.get("secretName") and auth.get("enableK8sTokenAuth"):
        yield "authOptions.secretName", None, "not with enableK8sTokenAuth", "keep one of them"
    names = [group["groupName"] for group in cluster.get("workerGroupSpecs", [])]
    for i, name in enumerate(names):
        if name in names[:i]:
            yield f"workerGroupSpecs.{i}.groupName", name, "given twice", "rename one"


def head_findings(cluster: dict[str, Any]) -> Iterator[Finding]:
    """Of the head: no work on it, and a way back when it dies."""
    head = cluster["headGroupSpec"]
    if head.get("rayStartParams", {}).get("num-cpus") != "0":
        value = head.get("rayStartParams", {}).get("num-cpus")
        yield "headGroupSpec.rayStartParams.num-cpus", value, "work would run here", 'set "0"'
    for field, *rest in start_findings(head, cluster):
        yield (f"headGroupSpec.{field}", *rest)


def fault_findings(cluster: dict[str, Any]) -> Iterator[Finding]:
    """Of the head's memory, GCS fault tolerance."""
    options = cluster.get("gcsFaultToleranceOptions")
    if not options or not options.get("redisAddress"):
        what = "the cluster would die with its head"
        yield "gcsFaultToleranceOptions.redisAddress", None, what, "name a Redis"
        options = options or {}
    if "value" in options.get("redisPassword", {}):
        field = "gcsFaultToleranceOptions.redisPassword.value"
        yield field, None, "a secret in the manifest", "use valueFrom.secretKeyRef"
    if "storage" in options and options.get("backend", "redis") == "redis":
        what = "only the rocksdb backend has storage"
        yield "gcsFaultToleranceOptions.storage", None, what, "remove it"
    head = cluster["headGroupSpec"]
    for i, variable in enumerate(head["template"]["spec"]["containers"][0].get("env", [])):
        if variable["name"] in ("REDIS_PASSWORD", "REDIS_USERNAME", "RAY_REDIS_ADDRESS"):
            field = f"headGroupSpec.template.spec.containers.0.env.{i}.name"
            remedy = "set it in gcsFaultToleranceOptions"
            yield field, variable["name"], "that variable is the operator's", remedy
        if variable["name"] == "RAY_enable_autoscaler_v2":
            field = f"headGroupSpec.template.spec.containers.0.env.{i}.name"
            what = "given twice"
            yield field, variable["name"], what, "keep autoscalerOptions.version"


def group_findings(group: dict[str, Any], cluster: dict[str, Any]) -> Iterator[Finding]:
    """Of a worker group."""
    least, most = group["minReplicas"], group["maxReplicas"]
    if least < 0:
        yield "minReplicas", least, "below 0", "give 0 or more"
    if least > most:
        yield "minReplicas", least, f"above maxReplicas {most}", "change one of them"
    if "replicas" in group:
        what = "the autoscaler's number: applying the file again would undo it"
        yield "replicas", group["replicas"], what, "remove it; minReplicas is where it starts"
    if "idleTimeoutSeconds" in group:
        if group["idleTimeoutSeconds"] < 0:
            yield "idleTimeoutSeconds", group["idleTimeoutSeconds"], "below 0", "give 0 or more"
        if cluster.get("autoscalerOptions", {}).get("version") != "v2":
            what = "a group's own timeout needs autoscalerOptions.version: v2"
            yield "idleTimeoutSeconds", group["idleTimeoutSeconds"], what, "set the version"
    if group.get("suspend"):
        yield "suspend", True, "not with the autoscaler", "remove it"
    resources = group.get("resources", {})
    if not set(resources) - {"CPU", "GPU", "memory"}:
        what = "no custom resource by which a recipe could place actors here"
        yield "resources", resources, what, "add one, such as the group's name"
    spec = group["template"]["spec"]
    limits = spec["containers"][0].get("resources", {}).get("limits", {})
    if resources.get("GPU", "0") != limits.get("nvidia.com/gpu", "0"):
        what = f"not the pod's limit, {limits.get('nvidia.com/gpu', '0')}"
        yield "resources.GPU", resources.get("GPU"), what, "make them equal"
    if "preStop" not in spec["containers"][0].get("lifecycle", {}):
        field = "template.spec.containers.0.lifecycle.preStop"
        yield field, None, "the pod would leave without a word", "run cluster/drain.sh"
    grace = spec.get("terminationGracePeriodSeconds", 30)
    if grace < SECONDS_TO_DRAIN:
        what = f"cluster/drain.sh takes {SECONDS_TO_DRAIN} s"
        yield "template.spec.terminationGracePeriodSeconds", grace, what, "give it more"
    if group["groupName"] == "teacher":
        yield from preemptible_findings(group)
    yield from start_findings(group, cluster)


def preemptible_findings(group: dict[str, Any]) -> Iterator[Finding]:
    """Teachers go where it is cheap, and to nothing when idle."""
    if group["minReplicas"] != 0:
        yield "minReplicas", group["minReplicas"], "idle teachers would stay", "set 0"
    tolerated = {t.get("key") for t in group["template"]["spec"].get("tolerations", [])}
    if not tolerated & PREEMPTIBLE:
        what = "no preemptible node would take it"
        yield "template.spec.tolerations", None, what, "tolerate the taint of such nodes"


def start_findings(group: dict[str, Any], cluster: dict[str, Any]) -> Iterator[Finding]:
    """What the operator asks of the head and of workers alike."""
    started = group.get("rayStartParams", {})
    twice = {"num-cpus", "num-gpus", "memory", "resources"} & set(started)
    if twice and group.get("resources"):
        what = "resources are given in rayStartParams and in resources"
        yield f"rayStartParams.{min(twice)}", started[min(twice)], what, "keep one of them"
    if "labels" in started:
        yield "rayStartParams.labels", started["labels"], "not supported", "use labels"
    if started.get("redis-password"):
        what = "a secret in the manifest"
        yield "rayStartParams.redis-password", None, what, "use gcsFaultToleranceOptions"
    policy = group["template"]["spec"].get("restartPolicy")
    if cluster.get("autoscalerOptions", {}).get("version") == "v2" and policy != "Never":
        what = "autoscaler v2 replaces pods itself"
        yield "template.spec.restartPolicy", policy, what, "set Never"
