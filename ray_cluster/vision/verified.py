"""The objects of a manifest, and manifests themselves: never a byte that its hash does not vouch for, and one manifest
whoever writes it."""

import hashlib
from collections.abc import Callable
from typing import TypeVar

from services.contracts.errors import CorruptObject
from services.contracts.models import ObjectRef
from services.runtime.objects.protocol import ObjectStore

Record = TypeVar("Record")


def read_verified(store: ObjectStore, ref: ObjectRef) -> bytes:
    """The object's bytes. Raises `CorruptObject` when they are not those of the manifest, `NotFound` when gone."""
    data = store.get(ref.key)
    if len(data) != ref.size_bytes or hashlib.sha256(data).hexdigest() != ref.sha256:
        raise CorruptObject(f"{ref.key} does not match its manifest", {"key": ref.key, "expected_sha256": ref.sha256})
    return data


def reference(key: str, data: bytes) -> ObjectRef:
    """The manifest entry of an object with these bytes."""
    return ObjectRef(key=key, sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data))


def put_by_content(store: ObjectStore, key_of: Callable[[str], str], data: bytes) -> ObjectRef:
    """Writes an object whose key follows from its SHA-256, so that two who differ cannot overwrite each other's."""
    sha256 = hashlib.sha256(data).hexdigest()
    ref = ObjectRef(key=key_of(sha256), sha256=sha256, size_bytes=len(data))
    store.put(ref.key, data)
    return ref


def put_or_adopt(store: ObjectStore, key: str, data: bytes, read: Callable[[], Record | None]) -> Record | None:
    """Writes a record, unless somebody was faster: theirs, which then counts, or None where this one does.

    `read` gives the record that is there, or None where that is of no use; then this one replaces it.
    """
    if store.put(key, data, if_absent=True) is None:
        theirs = read()
        if theirs is not None:
            return theirs
        store.put(key, data)
    return None
