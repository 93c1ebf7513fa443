"""Reading the objects of a manifest: never a byte that its hash does not vouch for."""

import hashlib

from services.contracts.errors import CorruptObject
from services.contracts.models import ObjectRef
from services.runtime.objects.protocol import ObjectStore


def read_verified(store: ObjectStore, ref: ObjectRef) -> bytes:
    """The object's bytes. Raises `CorruptObject` when they are not those of the manifest, `NotFound` when gone."""
    data = store.get(ref.key)
    if len(data) != ref.size_bytes or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CorruptObject(f"{ref.key} does not match its manifest", {"key": ref.key, "expected_sha256": ref.sha256})
    return data


def reference(key: str, data: bytes) -> ObjectRef:
    """The manifest entry of an object with these bytes."""
    return ObjectRef(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))
