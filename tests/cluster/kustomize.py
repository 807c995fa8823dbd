"""A reader of the few Kustomize features that ``cluster/`` uses, for machines without kubectl.

It knows resources, components, JSON patches, namespace, images and replacements, applied in
Kustomize's order, and refuses everything else. Where kubectl is there, a test holds this reader
against it.
"""

import copy
import json
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pipeline.problems import InputError, Problem

Value = Any
KNOWN = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches"}
LOCAL = "config.kubernetes.io/local-config"


@dataclass(frozen=True)
class Resource:
    """An object and the file it comes from, relative to the folder of all manifests."""

    file: str
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.data.get("kind"))

    @property
    def name(self) -> str:
        metadata = self.data.get("metadata")
        return str(metadata.get("name")) if isinstance(metadata, dict) else "None"


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """``SafeLoader`` that refuses a key given twice, as Kubernetes' strict readers do."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                text = f"key {key!r} is given twice"
                raise yaml.constructor.ConstructorError(None, None, text, node.start_mark)
        return super().construct_mapping(node, deep)


def read(path: Path) -> list[Value]:
    """The documents of a YAML file. Raises InputError where it is none."""
    try:
        documents = [d for d in yaml.load_all(path.read_text(), Loader=_Loader) if d is not None]
        # Through JSON, so that no two places share what an alias named: a patch changes one.
        return [json.loads(json.dumps(document)) for document in documents]
    except (OSError, yaml.YAMLError) as error:
        what = " ".join(str(error).split())
        raise InputError([Problem(str(path), "", None, what, "correct the YAML")]) from None


def build(folder: Path, root: Path) -> list[Resource]:
    """What ``kubectl kustomize FOLDER`` would print; files are named relative to ``root``."""
    resources = _accumulate(folder, root, [])
    annotations = (r.data.get("metadata", {}).get("annotations") or {} for r in resources)
    return [r for r, a in zip(resources, annotations, strict=True) if a.get(LOCAL) != "true"]


def _accumulate(folder: Path, root: Path, found: list[Resource]) -> list[Resource]:
    """``found`` (given to components) with what a kustomization adds and changes."""
    file = folder / "kustomization.yaml"
    label = str(file.relative_to(root))
    (settings,) = read(file)
    for key in set(settings) - KNOWN - {"replacements"}:
        _refuse(label, key, settings[key], "not one of the Kustomize features used here")
    resources = list(found)
    for entry in settings.get("resources", []):
        path = (folder / entry).resolve()
        if path.is_dir():
            resources += _accumulate(path, root, [])
        elif path.is_file():
            name = str(path.relative_to(root))
            resources += [Resource(name, document) for document in read(path)]
        else:
            _refuse(label, "resources", entry, "no such file or folder")
    for entry in settings.get("components", []):
        resources = _accumulate((folder / entry).resolve(), root, resources)
    for patch in settings.get("patches", []):
        _patch(patch, folder, label, resources)
    if "namespace" in settings:
        for resource in resources:
            resource.data["metadata"]["namespace"] = settings["namespace"]
    for image in settings.get("images", []):
        for resource in resources:
            _set_images(resource.data, image)
    for replacement in settings.get("replacements", []):
        _replace(replacement, label, resources)
    return resources


def _select(wanted: dict[str, str], label: str, resources: list[Resource]) -> list[Resource]:
    if set(wanted) != {"kind", "name"}:
        _refuse(label, "target", wanted, "a target is a kind and a name here")
    chosen = [r for r in resources if (r.kind, r.name) == (wanted["kind"], wanted["name"])]
    if not chosen:
        _refuse(label, "target", wanted, "matches nothing")
    return chosen


def _patch(patch: dict[str, Any], folder: Path, label: str, resources: list[Resource]) -> None:
    """RFC 6902: add, replace, remove, test."""
    if "path" in patch:
        label = f"{Path(label).parent / patch['path']}"
        (operations,) = read(folder / patch["path"])
    else:
        operations = yaml.safe_load(patch["patch"])
    for resource in _select(patch["target"], label, resources):
        for operation in operations:
            *parents, last = operation["path"].lstrip("/").split("/")
            field, op = ".".join([*parents, last]), operation["op"]
            inner = _inner(resource.data, parents, label, field)
            value = copy.deepcopy(operation.get("value"))
            if isinstance(inner, list) and op == "add" and last == "-":
                inner.append(value)
                continue
            key = int(last) if isinstance(inner, list) else last
            there = key < len(inner) if isinstance(key, int) else key in inner
            if op != "add" and not there:
                _refuse(label, field, None, f"there is nothing to {op}")
            if op == "test":
                if inner[key] != value:
                    _refuse(label, field, inner[key], f"is not {value!r}")
            elif (op in ("add", "replace") and not isinstance(key, int)) or op == "replace":
                inner[key] = value
            elif op == "remove":
                del inner[key]
            else:
                _refuse(label, field, op, "an operation that is not used here")


def _inner(data: Value, parents: list[str], label: str, field: str) -> Value:
    for part in parents:
        try:
            data = data[int(part)] if isinstance(data, list) else data[part]
        except (KeyError, IndexError, ValueError, TypeError):
            _refuse(label, field, part, "no such place in the resource")
    return data


def _set_images(data: Value, image: dict[str, str]) -> None:
    if isinstance(data, list):
        for item in data:
            _set_images(item, image)
    elif isinstance(data, dict):
        for key, value in data.items():
            if key in ("containers", "initContainers") and isinstance(value, list):
                for container in value:
                    name, _, tag = str(container.get("image")).partition(":")
                    if name == image["name"]:
                        name, tag = image.get("newName", name), image.get("newTag", tag)
                        container["image"] = f"{name}:{tag}" if tag else name
            _set_images(value, image)


def _replace(replacement: dict[str, Any], label: str, resources: list[Resource]) -> None:
    source = dict(replacement["source"])
    *parents, last = source.pop("fieldPath").split(".")
    (origin,) = _select(source, label, resources)
    value = _inner(origin.data, [*parents, last], label, last)
    for target in replacement["targets"]:
        for resource in _select(target["select"], label, resources):
            for path in target["fieldPaths"]:
                *parents, last = path.split(".")
                inner = _inner(resource.data, parents, label, path)
                if last not in inner and not target.get("options", {}).get("create"):
                    _refuse(label, path, None, "there is nothing to replace")
                inner[last] = copy.deepcopy(value)


def _refuse(file: str, field: str, value: object, what: str) -> None:
    raise InputError([Problem(file, field, value, what, "see tests/cluster/kustomize.py")])
