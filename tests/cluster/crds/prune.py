"""Cut KubeRay's CRDs down to what the manifests here may use: ``schemas.json`` beside this file.

Usage: ``python tests/cluster/crds/prune.py FOLDER``, with ``ray.io_rayclusters.yaml`` and
``ray.io_rayjobs.yaml`` of KubeRay's ``ray-operator/config/crd/bases`` in FOLDER.

What goes: descriptions and defaults, what the checks do not read (formats, list types), status,
and the fields that no list below keeps. A field that is cut is refused by the tests, so to use a
new one add it here and run this again. Schemas of Kubernetes' own kinds are taken from the places
where the CRDs embed them: pod templates, Services, claims, network rules.
"""

import json
import sys
from pathlib import Path
from typing import Any

import yaml

Schema = dict[str, Any]

WORDS = ("type", "properties", "required", "items", "enum", "anyOf", "pattern", "minimum")
MORE_WORDS = ("minItems", "additionalProperties")
POD = (
    "automountServiceAccountToken containers enableServiceLinks hostIPC hostNetwork hostPID "
    "imagePullSecrets initContainers nodeSelector priorityClassName restartPolicy "
    "runtimeClassName securityContext serviceAccountName terminationGracePeriodSeconds "
    "tolerations volumes"
)
CONTAINER = (
    "args command env envFrom image imagePullPolicy lifecycle livenessProbe name ports "
    "readinessProbe resources securityContext volumeMounts workingDir"
)
VOLUME = "configMap emptyDir hostPath name persistentVolumeClaim secret"
CLUSTER = (
    "authOptions autoscalerOptions enableInTreeAutoscaling gcsFaultToleranceOptions "
    "headGroupSpec rayVersion suspend workerGroupSpecs"
)
HEAD = "labels rayStartParams resources serviceType template"
ANYWHERE_CUT = {"windowsOptions", "appArmorProfile", "seLinuxOptions", "status"}


def spec_of(folder: Path, plural: str) -> Schema:
    """The schema of ``spec`` in version v1 of a CRD."""
    crd = yaml.safe_load((folder / f"ray.io_{plural}.yaml").read_text())
    (v1,) = (v for v in crd["spec"]["versions"] if v["name"] == "v1")
    schema: Schema = v1["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return schema


def bare(schema: Schema) -> Schema:
    """A schema with the words that the checks read, and without what is cut everywhere."""
    kept: Schema = {}
    for word in (*WORDS, *MORE_WORDS):
        if word not in schema:
            continue
        value = schema[word]
        if word == "properties":
            value = {k: bare(v) for k, v in value.items() if k not in ANYWHERE_CUT}
        elif word in ("items", "additionalProperties") and isinstance(value, dict):
            value = bare(value)
        kept[word] = value
    return kept


def keep(schema: Schema, names: str) -> None:
    """Cut an object's other fields, in place."""
    properties = schema["properties"]
    for name in set(properties) - set(names.split()):
        del properties[name]


def prune(cluster: Schema, job: Schema) -> Schema:
    """The schemas by kind, with what they share once, under ``$defs``."""
    cluster, job = bare(cluster), bare(job)
    head = cluster["properties"]["headGroupSpec"]["properties"]
    worker = cluster["properties"]["workerGroupSpecs"]["items"]["properties"]
    network = cluster["properties"]["networkPolicy"]["properties"]["head"]["properties"]
    pod, service = head["template"], head["headService"]["properties"]["spec"]
    volume = pod["properties"]["spec"]["properties"]["volumes"]["items"]
    claim = volume["properties"]["ephemeral"]["properties"]["volumeClaimTemplate"]
    claim = claim["properties"]["spec"]
    container = pod["properties"]["spec"]["properties"]["containers"]["items"]

    keep(pod["properties"]["spec"], POD)
    keep(volume, VOLUME)
    keep(container, CONTAINER)
    for containers in ("containers", "initContainers"):
        place = pod["properties"]["spec"]["properties"][containers]
        place["items"] = {"$ref": "#/$defs/Container"}
    keep(cluster, CLUSTER)
    keep(cluster["properties"]["headGroupSpec"], HEAD)
    head["template"] = worker["template"] = {"$ref": "#/$defs/PodTemplate"}
    job["properties"]["submitterPodTemplate"] = {"$ref": "#/$defs/PodTemplate"}
    job["properties"]["rayClusterSpec"] = {"$ref": "#/$defs/RayCluster"}
    return {
        "$defs": {
            "RayCluster": cluster,
            "RayJob": job,
            "PodTemplate": pod,
            "Container": container,
            "Service": service,
            "PersistentVolumeClaim": claim,
            "IngressRules": network["ingressRules"],
            "EgressRules": network["egressRules"],
        }
    }


if __name__ == "__main__":
    source = Path(sys.argv[1])
    pruned = prune(spec_of(source, "rayclusters"), spec_of(source, "rayjobs"))
    Path(__file__).with_name("schemas.json").write_text(json.dumps(pruned, indent=1) + "\n")
