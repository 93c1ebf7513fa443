"""Renders the kustomizations in deploy/k8s as `kubectl kustomize` would, for what they use of it; refuses the rest.

`resources`, `components`, `namespace`, `images` (`newName`, `newTag`), `patches` of JSON operations with a target, and
`configMapGenerator` of files, without a hash in the name; in kustomize's order: what a folder refers to and generates,
its components, then its own changes.
"""

import copy
import re
from pathlib import Path
from typing import Any

import yaml

Document = dict[str, Any]

_FIELDS = {"apiVersion", "kind", "namespace", "resources", "components", "images", "patches", "configMapGenerator"}
_KINDS = {
    ("kustomize.config.k8s.io/v1beta1", "Kustomization"),
    ("kustomize.config.k8s.io/v1alpha1", "Component"),
}
_SELECTORS = {"group", "version", "kind", "name"}


class Unsupported(ValueError):
    """A kustomization that is wrong, or that uses what this renderer does not know."""


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, where YAML's own loader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        _refuse(bool(twice), f"{node.start_mark}: twice: {', '.join(sorted(twice))}")
        return super().construct_mapping(node, deep)


def load_all(text: str) -> list[Any]:
    """The documents in a YAML text."""
    return list(yaml.load_all(text, _Loader))


def render(folder: Path) -> list[Document]:
    """The documents of a folder with a kustomization.yaml. Raises `Unsupported`."""
    return _render(folder.resolve(), [])


def _render(folder: Path, below: list[Document]) -> list[Document]:
    (kustomization,) = load_all((folder / "kustomization.yaml").read_text())
    unknown = kustomization.keys() - _FIELDS
    _refuse(bool(unknown), f"{folder}: {', '.join(sorted(unknown))}")
    kind = (kustomization["apiVersion"], kustomization["kind"])
    _refuse(kind not in _KINDS, f"{folder}: {kind}")
    documents = list(below)
    for name in kustomization.get("resources", []):
        documents += _resources(folder / name)
    documents += [_config_map(folder, generator) for generator in kustomization.get("configMapGenerator", [])]
    for name in kustomization.get("components", []):
        documents = _render((folder / name).resolve(), documents)
    identities = [(each["apiVersion"], each["kind"], each["metadata"]["name"]) for each in documents]
    _refuse(len(set(identities)) < len(identities), f"{folder}: a document twice")
    for patch in kustomization.get("patches", []):
        _apply_patch(folder, patch, documents)
    if "namespace" in kustomization:
        _set_namespace(kustomization["namespace"], documents)
    for image in kustomization.get("images", []):
        _refuse(not {"name"} < image.keys() <= {"name", "newName", "newTag"}, f"{folder}: image {image}")
        changed = [_set_image(container, image) for each in documents for container in containers(each)]
        _refuse(not any(changed), f"{folder}: no container has image {image['name']}")
    return documents


def _resources(path: Path) -> list[Document]:
    if path.is_dir():
        return _render(path.resolve(), [])
    return load_all(path.read_text())


def _config_map(folder: Path, generator: Document) -> Document:
    options = generator.get("options", {})
    plain = generator.keys() == {"name", "files", "options"} and options.keys() <= {"disableNameSuffixHash", "labels"}
    _refuse(not plain or options.get("disableNameSuffixHash") is not True, f"{folder}: generator {generator}")
    outside = [name for name in generator["files"] if "=" in name or ".." in name]
    _refuse(bool(outside), f"{folder}: kustomize reads files below its folder only: {outside}")
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": generator["name"], "labels": options.get("labels", {})},
        "data": {Path(name).name: (folder / name).read_text() for name in generator["files"]},
    }


def _apply_patch(folder: Path, patch: Document, documents: list[Document]) -> None:
    _refuse(patch.keys() not in ({"target", "patch"}, {"target", "path"}), f"{folder}: patch {patch}")
    target = patch["target"]
    _refuse(not target or not target.keys() <= _SELECTORS, f"{folder}: target {target}")
    text = patch["patch"] if "patch" in patch else (folder / patch["path"]).read_text()
    (operations,) = load_all(text)
    meant = [each for each in documents if _is_meant(each, target)]
    _refuse(not meant, f"{folder}: nothing is {target}")
    for document in meant:
        for operation in operations:
            _operate(document, copy.deepcopy(operation))


def _is_meant(document: Document, target: Document) -> bool:
    group, _, version = document["apiVersion"].rpartition("/")
    values = {"group": group, "version": version, "kind": document["kind"], "name": document["metadata"]["name"]}
    return all(re.fullmatch(pattern, values[field]) for field, pattern in target.items())


def _operate(document: Document, operation: Document) -> None:
    """One operation of RFC 6902."""
    op, path = operation["op"], operation["path"]
    _refuse(not path.startswith("/"), f"path {path}")
    *parents, last = [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
    place: Any = document
    for part in parents:
        index = int(part) if isinstance(place, list) else part
        _refuse(not _has(place, index), f"{document['kind']} has nothing at {path}")
        place = place[index]
    if op == "add" and isinstance(place, list):
        _refuse(last != "-", f"{path}: only at the end")
        place.append(operation["value"])
        return
    index = int(last) if isinstance(place, list) else last
    _refuse(op != "add" and not _has(place, index), f"{document['kind']} has nothing at {path}")
    if op in ("add", "replace"):
        _refuse(op == "add" and _has(place, index), f"{document['kind']} has {path} already: replace it")
        place[index] = operation["value"]
    else:
        _refuse(op != "remove", f"operation {op}")
        del place[index]


def _has(place: Any, index: str | int) -> bool:
    return 0 <= int(index) < len(place) if isinstance(place, list) else index in place


def _set_namespace(namespace: str, documents: list[Document]) -> None:
    for document in documents:
        if document["kind"] == "Namespace":
            _refuse(document["metadata"]["name"] != namespace, f"namespace {document['metadata']['name']}")
        else:
            document["metadata"]["namespace"] = namespace


def containers(document: Document) -> list[Document]:
    """Every container in it, whatever its kind, as kustomize finds images."""
    found: list[Document] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                walk(inner)
                if key in ("containers", "initContainers"):
                    found.extend(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    return found


def _set_image(container: Document, image: Document) -> bool:
    name, _, tag = container["image"].rpartition(":")
    if name != image["name"]:
        return False
    container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"
    return True


def _refuse(wrong: bool, why: str) -> None:
    if wrong:
        raise Unsupported(why)
