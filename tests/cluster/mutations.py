"""Planted mistakes: each changes a file of ``cluster/`` and must be reported by file and field."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Document = Any
RAY, JOB = "base/raycluster.yaml", "job/rayjob.yaml"
MLFLOW, REDIS, NETWORK = "base/mlflow.yaml", "base/redis.yaml", "base/network.yaml"
GPU, KIND = "overlays/gpu/raycluster.yaml", "overlays/kind/raycluster.yaml"
SETTINGS = "base/settings.yaml"
STUDENT, TEACHER, CPU = 0, 1, 2


@dataclass(frozen=True)
class Mutation:
    """``change`` edits the documents of ``file``; ``field`` must be named, in ``named``.

    A Ray cluster's mistakes are named in the file of the RayCluster and in that of the RayJob
    that copies it.
    """

    name: str
    file: str
    change: Callable[[list[Document]], object]
    field: str
    named: str = ""

    @property
    def named_in(self) -> str:
        return self.named or self.file


def put(document: int, path: str, value: object) -> Callable[[list[Document]], object]:
    """Set the value at a dotted path, in the given document of the file."""

    def change(documents: list[Document]) -> None:
        inner, (*parents, last) = documents[document], path.split(".")
        for part in parents:
            inner = inner[int(part)] if isinstance(inner, list) else inner.setdefault(part, {})
        inner[int(last) if isinstance(inner, list) else last] = value

    return change


def drop(document: int, path: str) -> Callable[[list[Document]], object]:
    """Remove what is at a dotted path."""

    def change(documents: list[Document]) -> None:
        inner, (*parents, last) = documents[document], path.split(".")
        for part in parents:
            inner = inner[int(part)] if isinstance(inner, list) else inner[part]
        del inner[int(last) if isinstance(inner, list) else last]

    return change


def ray(name: str, path: str, value: object, field: str = "", file: str = RAY) -> Mutation:
    return Mutation(name, file, put(0, f"spec.{path}", value), f"spec.{field or path}")


def without(name: str, path: str, field: str = "", file: str = RAY, named: str = "") -> Mutation:
    return Mutation(name, file, drop(0, f"spec.{path}"), f"spec.{field or path}", named)


def worker(group: int, path: str) -> str:
    return f"workerGroupSpecs.{group}.{path}"


def pod(group: int, path: str) -> str:
    return worker(group, f"template.spec.{path}")


RENAME = {"op": "replace", "path": "/spec/workerGroupSpecs/0/groupName", "value": "cpu"}
HEAD = "headGroupSpec.template.spec"
SUBMITTER = "submitterPodTemplate.spec.containers.0"
FIRST = "containers.0"

SCHEMA = (
    ray("unknown_field_of_the_cluster", "enableInTreeAutoscalling", True),
    ray("unknown_field_of_a_group", worker(TEACHER, "maxReplica"), 4),
    ray("unknown_field_of_a_pod", pod(STUDENT, "toleration"), []),
    ray("unknown_field_of_a_container", f"{HEAD}.{FIRST}.resource", {}),
    ray("text_for_a_number", worker(CPU, "maxReplicas"), "4"),
    ray("number_for_a_text", "headGroupSpec.rayStartParams.num-cpus", 0),
    ray("no_such_autoscaler", "autoscalerOptions.version", "v3"),
    ray("no_such_quantity", f"{HEAD}.{FIRST}.resources.limits.memory", "8 GB"),
    without("group_without_name", worker(STUDENT, "groupName"), named=GPU),
    without("group_without_min", worker(TEACHER, "minReplicas")),
    without("group_without_max", worker(STUDENT, "maxReplicas")),
    without("group_without_template", worker(CPU, "template"), named=GPU),
    without("no_head", "headGroupSpec"),
    ray("unknown_field_of_a_job", "shutdownAfterJobFinish", True, file=JOB),
    Mutation("wrong_version", RAY, put(0, "apiVersion", "ray.io/v1alpha1"), "apiVersion"),
    Mutation(
        "name_with_capitals",
        JOB,
        put(0, "metadata.name", "My_Run"),
        "target",
        "job/kustomization.yaml",
    ),
    Mutation("inlined_secret_object", SETTINGS, put(0, "kind", "Secret"), "kind"),
    Mutation(
        "unknown_field_of_a_policy", NETWORK, put(0, "spec.policyType", ["Ingress"]), "policyType"
    ),
    Mutation("unknown_field_of_a_service", MLFLOW, put(2, "spec.port", 5000), "spec.port"),
    Mutation(
        "unknown_field_of_a_claim", "base/storage.yaml", put(0, "spec.size", "1Gi"), "spec.size"
    ),
)
OPERATOR = (
    ray("v2_restarts_head", f"{HEAD}.restartPolicy", "Always"),
    ray("v2_restarts_worker", pod(TEACHER, "restartPolicy"), "OnFailure"),
    ray("idle_timeout_without_v2", "autoscalerOptions.version", "v1", "workerGroupSpecs.1.idle"),
    without("idle_timeout_without_version", "autoscalerOptions.version", "workerGroupSpecs.0.idle"),
    ray("retries_on_a_shared_cluster", "clusterSelector", {"x": "y"}, "backoffLimit", file=JOB),
    ray("token_with_an_old_ray", "rayVersion", "2.51.1"),
    ray("work_on_the_head", "headGroupSpec.rayStartParams.num-cpus", "4"),
    without("head_counts_its_cores", "headGroupSpec.rayStartParams.num-cpus"),
    ray("min_above_max", worker(STUDENT, "minReplicas"), 9),
    ray("replicas_of_the_autoscaler", worker(CPU, "replicas"), 1),
    ray("negative_idle_timeout", worker(CPU, "idleTimeoutSeconds"), -1),
    Mutation(
        "two_groups_of_one_name",
        KIND,
        put(0, "1", RENAME),
        "spec.workerGroupSpecs.2.groupName",
        RAY,
    ),
    ray("resources_given_twice", worker(STUDENT, "rayStartParams.num-cpus"), "2"),
    ray("labels_in_start_params", worker(STUDENT, "rayStartParams.labels"), "a=b"),
    ray("suspended_group", worker(CPU, "suspend"), True),
    ray("storage_of_another_backend", "gcsFaultToleranceOptions.storage", {"size": "1Gi"}),
    ray(
        "redis_password_in_env",
        f"{HEAD}.{FIRST}.env.0",
        {"name": "REDIS_PASSWORD", "valueFrom": {"secretKeyRef": {"name": "r", "key": "k"}}},
        f"{HEAD}.{FIRST}.env.0.name",
    ),
    ray("sidecar_with_a_template", "submissionMode", "SidecarMode", "submitterPod", file=JOB),
    ray("entrypoint_of_two_commands", "entrypoint", "test -e a && python b", file=JOB),
    ray("entrypoint_in_brackets", "entrypoint", "(test -e a || python b)", file=JOB),
    ray("entrypoint_cut_short", "entrypoint", "bash -c 'python a", file=JOB),
    ray("entrypoint_of_two_lines", "entrypoint", "python a\npython b", file=JOB),
    ray("negative_ttl", "ttlSecondsAfterFinished", -5, file=JOB),
)
OURS = (
    ray("autoscaling_off", "enableInTreeAutoscaling", False),
    ray("authentication_off", "authOptions.mode", "disabled"),
    without("no_authentication", "authOptions", "authOptions.mode"),
    without("head_without_memory", "gcsFaultToleranceOptions", "gcsFaultToleranceOptions.redis"),
    ray("cluster_stays", "shutdownAfterJobFinishes", False, file=JOB),
    without("driver_on_the_head", "entrypointResources", file=JOB),
    ray("driver_nowhere", "entrypointResources", '{"drivers": 1}', file=JOB),
    without("no_submitter", "submitterPodTemplate", file=JOB, named="job/kustomization.yaml"),
    Mutation(
        "no_custom_resource",
        GPU,
        put(0, "7.value", {"CPU": "4", "GPU": "1"}),
        "spec.workerGroupSpecs.1.resources",
        RAY,
    ),
    without("leaves_without_a_word", pod(STUDENT, f"{FIRST}.lifecycle")),
    ray("no_time_to_drain", pod(CPU, "terminationGracePeriodSeconds"), 5),
    without("teachers_on_dear_nodes", pod(TEACHER, "tolerations")),
    ray("teachers_stay", worker(TEACHER, "minReplicas"), 1),
    Mutation(
        "more_gpus_than_the_pod_has",
        GPU,
        put(0, "2.value.GPU", "2"),
        "spec.workerGroupSpecs.0.resources.GPU",
        RAY,
    ),
    Mutation("patch_of_another_group", GPU, put(0, "0.value", "teacher"), "workerGroupSpecs.0"),
    Mutation("patch_of_nothing", GPU, put(0, "1.path", "/spec/none/0/maxReplicas"), "spec.none"),
)
PODS = (
    ray("root_user", f"{HEAD}.securityContext.runAsUser", 0),
    ray("may_be_root", pod(TEACHER, "securityContext.runAsNonRoot"), False),
    without("no_seccomp", pod(CPU, "securityContext.seccompProfile")),
    ray("writable_root", pod(STUDENT, f"{FIRST}.securityContext.readOnlyRootFilesystem"), False),
    without("autoscaler_writes", "autoscalerOptions.securityContext.readOnlyRootFilesystem"),
    ray("privileged", pod(TEACHER, f"{FIRST}.securityContext.privileged"), True),
    ray("escalates", f"{HEAD}.{FIRST}.securityContext.allowPrivilegeEscalation", True),
    ray("adds_capabilities", pod(CPU, f"{FIRST}.securityContext.capabilities.add"), ["SYS_ADMIN"]),
    ray("keeps_capabilities", pod(CPU, f"{FIRST}.securityContext.capabilities.drop"), ["KILL"]),
    ray("worker_with_a_token", pod(TEACHER, "automountServiceAccountToken"), True),
    without("worker_with_the_default", pod(STUDENT, "automountServiceAccountToken")),
    ray("autoscaler_without_token", f"{HEAD}.automountServiceAccountToken", False),
    ray("host_network", f"{HEAD}.hostNetwork", True),
    ray("host_folder", pod(STUDENT, "volumes.0"), {"name": "runs", "hostPath": {"path": "/"}}),
    ray("mount_of_nothing", pod(CPU, f"{FIRST}.volumeMounts.0.name"), "run"),
    without("nowhere_to_write", pod(CPU, f"{FIRST}.volumeMounts.1"), pod(CPU, f"{FIRST}.volumeM")),
    without("no_memory_limit", f"{SUBMITTER}.resources.limits.memory", file=JOB),
    ray("submitter_as_root", "submitterPodTemplate.spec.securityContext.runAsUser", 0, file=JOB),
    ray("submitter_writes", f"{SUBMITTER}.securityContext.readOnlyRootFilesystem", False, file=JOB),
    Mutation(
        "unsized_by_the_overlay",
        GPU,
        drop(0, "3.value.limits.memory"),
        "spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.memory",
        RAY,
    ),
    without("no_cpu_request", f"{HEAD}.{FIRST}.resources.requests.cpu"),
    Mutation(
        "latest_image",
        "overlays/gpu/kustomization.yaml",
        put(0, "images.0.newTag", "latest"),
        "spec.headGroupSpec.template.spec.containers.0.image",
        RAY,
    ),
    Mutation(
        "latest_redis",
        REDIS,
        put(0, "spec.template.spec.containers.0.image", "redis"),
        "spec.template.spec.containers.0.image",
    ),
    ray("no_such_claim", pod(STUDENT, "volumes.0.persistentVolumeClaim.claimName"), "run"),
)
SECRETS = (
    Mutation(
        "password_in_env",
        MLFLOW,
        put(
            0,
            "spec.template.spec.containers.0.env.2",
            {"name": "MLFLOW_AUTH_ADMIN_PASSWORD", "value": "hunter2hunter2"},
        ),
        "spec.template.spec.containers.0.env.2.value",
    ),
    Mutation(
        "password_in_an_address",
        MLFLOW,
        put(
            0,
            "spec.template.spec.containers.0.args.4",
            "--backend-store-uri=postgresql://mlflow:hunter2@db/mlflow",
        ),
        "spec.template.spec.containers.0.args.4",
    ),
    Mutation(
        "password_in_an_argument",
        REDIS,
        put(0, "spec.template.spec.containers.0.args.0", "redis-server --requirepass hunter2"),
        "spec.template.spec.containers.0.args.0",
    ),
    Mutation(
        "password_in_settings",
        MLFLOW,
        put(1, "data", {"basic_auth.ini": "[mlflow]\nadmin_password = hunter2\n"}),
        "data.basic_auth.ini",
    ),
    Mutation(
        "key_in_settings",
        SETTINGS,
        put(1, "data.AWS_SECRET_ACCESS_KEY", "abc"),
        "data.AWS_SECRET_ACCESS_KEY",
    ),
    ray("redis_password_inlined", "gcsFaultToleranceOptions.redisPassword", {"value": "hunter2"}),
)
SETS = (
    Mutation("no_default_deny", NETWORK, put(0, "spec.policyTypes", ["Ingress"]), "policyTypes"),
    Mutation("deny_with_a_hole", NETWORK, put(0, "spec.egress", [{}]), "policyTypes"),
    Mutation(
        "service_of_nothing",
        REDIS,
        put(1, "spec.selector", {"app.kubernetes.io/name": "reddis"}),
        "spec.selector",
    ),
    Mutation(
        "deployment_of_others",
        MLFLOW,
        put(0, "spec.selector.matchLabels", {"app.kubernetes.io/name": "ml"}),
        "spec.selector.matchLabels",
    ),
    Mutation(
        "settings_of_nobody",
        MLFLOW,
        put(0, "spec.template.spec.volumes.1.configMap.name", "mlflow-authn"),
        "spec.template.spec.volumes.1.configMap.name",
    ),
    Mutation("two_of_a_name", REDIS, put(2, "metadata.name", "mlflow"), "metadata.name"),
)
MUTATIONS = (*SCHEMA, *OPERATOR, *OURS, *PODS, *SECRETS, *SETS)
