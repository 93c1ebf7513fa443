"""A published version's tail, read from the bucket and checked against its manifest."""

import sys
from dataclasses import dataclass

from pydantic import ValidationError

from ray_cluster.vision.network_tails import NetworkTail
from ray_cluster.vision.tails import AnyTail, Tail
from ray_cluster.vision.verified import read_verified
from services.contracts import names
from services.contracts.errors import Conflict, CorruptObject, NotFound
from services.contracts.models import ModelManifest, TrunkManifest
from services.runtime.objects.protocol import ObjectStore


@dataclass(frozen=True, slots=True)
class TailKey:
    """One published version."""

    model_name: str
    version: int


@dataclass(frozen=True, slots=True, eq=False)
class LabelledTail:
    """A tail and what its classes are called; class k is labels[k]."""

    tail: AnyTail
    labels: tuple[str, ...]

    @property
    def size_bytes(self) -> int:
        """Memory that the arrays and the labels hold."""
        return self.tail.size_bytes + sum(sys.getsizeof(label) for label in self.labels)


def load_tail(store: ObjectStore, trunk: TrunkManifest, key: TailKey) -> LabelledTail:
    """Reads one version. Blocks; run it in a thread.

    Raises:
        NotFound: there is no such version.
        Conflict: the version was trained on another trunk.
        CorruptObject: what is in the bucket is not what the manifest says, or does not fit the trunk.
        ObjectStoreUnavailable: try again.
    """
    manifest = _manifest_on(store, trunk, key)
    data = read_verified(store, manifest.tail)
    tail: AnyTail = NetworkTail(data) if manifest.tail_kind == "network" else Tail.from_bytes(data)
    if tail.feature_dim != trunk.feature_dim or tail.class_count != len(manifest.labels):
        raise CorruptObject(
            f"the tail of {key.model_name!r} version {key.version} maps {tail.feature_dim} features to "
            f"{tail.class_count} classes; its trunk gives {trunk.feature_dim} and it has {len(manifest.labels)} labels"
        )
    return LabelledTail(tail, tuple(manifest.labels))


def read_network(store: ObjectStore, trunk: TrunkManifest, key: TailKey) -> bytes:
    """The flatbuffer of a version whose tail is a network. Blocks. Raises as `load_tail` does."""
    manifest = _manifest_on(store, trunk, key)
    if manifest.tail_kind != "network":
        raise CorruptObject(f"the tail of {key.model_name!r} version {key.version} is no network")
    return read_verified(store, manifest.tail)


def _manifest_on(store: ObjectStore, trunk: TrunkManifest, key: TailKey) -> ModelManifest:
    """The version's manifest. Raises `Conflict` where it is on another trunk."""
    manifest = _read_manifest(store, key)
    if manifest.trunk.trunk_id != trunk.trunk_id:
        raise Conflict(
            f"model {key.model_name!r} version {key.version} is on trunk {manifest.trunk.trunk_id}, "
            f"and this replica runs trunk {trunk.trunk_id}",
            {"model": key.model_name, "version": key.version, "trunk_id": manifest.trunk.trunk_id},
        )
    return manifest


def _read_manifest(store: ObjectStore, key: TailKey) -> ModelManifest:
    try:
        data = store.get(names.model_manifest(key.model_name, key.version))
    except NotFound as error:
        raise NotFound(
            f"model {key.model_name!r} has no version {key.version}",
            {"model": key.model_name, "version": key.version},
        ) from error
    try:
        return ModelManifest.model_validate_json(data)
    except ValidationError as error:
        raise CorruptObject(f"the manifest of {key.model_name!r} version {key.version} cannot be read") from error
