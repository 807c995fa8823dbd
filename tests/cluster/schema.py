"""Strict schemas: KubeRay's own, pruned, with every field that they do not know refused."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from pipeline.problems import Problem
from tests.cluster.kustomize import Resource

Schema = dict[str, Any]

PRUNED = Path(__file__).parent / "crds" / "schemas.json"
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
NAME = r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$"
METADATA: Schema = {
    "properties": {
        "name": {"type": "string", "pattern": NAME},
        "namespace": {"type": "string", "pattern": NAME},
        "labels": TEXTS,
        "annotations": TEXTS,
    },
    "required": ["name"],
}
VERSIONS = {
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "Deployment": "apps/v1",
    "NetworkPolicy": "networking.k8s.io/v1",
    "Service": "v1",
    "PersistentVolumeClaim": "v1",
    "ConfigMap": "v1",
}


def reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


SELECTOR: Schema = {
    "properties": {
        "matchLabels": TEXTS,
        "matchExpressions": {
            "type": "array",
            "items": {
                "properties": {
                    "key": {"type": "string"},
                    "operator": {"enum": ["In", "NotIn", "Exists", "DoesNotExist"]},
                    "values": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["key", "operator"],
            },
        },
    }
}
# Of kinds that no CRD embeds whole: the fields in use here.
SPECS: dict[str, Schema] = {
    "Deployment": {
        "properties": {
            "replicas": {"type": "integer", "minimum": 0},
            "strategy": {
                "properties": {"type": {"enum": ["Recreate", "RollingUpdate"]}},
                "required": ["type"],
            },
            "selector": SELECTOR,
            "template": reference("PodTemplate"),
        },
        "required": ["selector", "template"],
    },
    "NetworkPolicy": {
        "properties": {
            "podSelector": SELECTOR,
            "policyTypes": {"type": "array", "items": {"enum": ["Ingress", "Egress"]}},
            "ingress": reference("IngressRules"),
            "egress": reference("EgressRules"),
        },
        "required": ["podSelector", "policyTypes"],
    },
}


def schema_problems(resource: Resource) -> list[Problem]:
    """What is wrong with an object by its kind's schema, field by field."""
    if resource.kind not in VERSIONS:
        remedy = f"use one of {', '.join(sorted(VERSIONS))}; secrets are made by hand"
        return [Problem(resource.file, "kind", resource.kind, "not a kind used here", remedy)]
    errors = _validator(resource.kind).iter_errors(resource.data)
    return [problem for error in errors for problem in _problems(resource.file, error)]


@cache
def _validator(kind: str) -> Draft202012Validator:
    fields: Schema = {
        "apiVersion": {"const": VERSIONS[kind]},
        "kind": {"const": kind},
        "metadata": METADATA,
    }
    body = "data" if kind == "ConfigMap" else "spec"
    fields[body] = TEXTS if kind == "ConfigMap" else SPECS.get(kind, reference(kind))
    schema = {"properties": fields, "required": sorted(fields)}
    schema |= json.loads(PRUNED.read_text())
    return Draft202012Validator(_strict(schema))


def _strict(schema: Any) -> Any:
    """The schema with fields that it does not name refused, at every depth."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    strict = {key: _strict(value) for key, value in schema.items()}
    # A field may itself be called `properties`; then its value is no mapping of schemas.
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        strict |= {"type": "object", "additionalProperties": False}
    return strict


def _problems(file: str, error: ValidationError) -> Iterator[Problem]:
    place = [str(part) for part in error.absolute_path]
    if error.validator == "additionalProperties":
        for name in set(error.instance) - set(error.schema["properties"]):
            field = ".".join([*place, str(name)])
            yield Problem(file, field, None, "no such field", "remove it, or check its spelling")
    elif error.validator == "required":
        # jsonschema tells which one only in its message, so ask again.
        for name in error.validator_value:
            if name not in error.instance:
                field = ".".join([*place, name])
                yield Problem(file, field, None, "this field is required", "add it")
    else:
        what = f"not what the schema allows ({error.validator}: {error.validator_value})"
        yield Problem(file, ".".join(place), error.instance, what, "give a value of that form")
