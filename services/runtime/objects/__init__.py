"""The object store: S3 or a local folder behind one protocol."""

from services.runtime.objects.locations import open_object, open_store
from services.runtime.objects.protocol import Folder, ObjectInfo, ObjectStore, StoredObject

__all__ = ["Folder", "ObjectInfo", "ObjectStore", "StoredObject", "open_object", "open_store"]
