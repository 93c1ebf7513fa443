"""The object store: S3 or a local folder behind one protocol."""

from services.runtime.objects.check import self_test
from services.runtime.objects.locations import open_object, open_store
from services.runtime.objects.protocol import Folder, ObjectInfo, ObjectStore, StoredObject
from services.runtime.objects.retry import RetryPolicy

__all__ = [
    "Folder",
    "ObjectInfo",
    "ObjectStore",
    "RetryPolicy",
    "StoredObject",
    "open_object",
    "open_store",
    "self_test",
]
