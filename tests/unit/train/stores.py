"""A store whose writes fail when a test says so."""

from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from services.contracts.errors import ObjectStoreUnavailable
from services.runtime.objects import Folder, ObjectInfo, ObjectStore, StoredObject


class FaultyStore:
    """An `ObjectStore` over another that raises `ObjectStoreUnavailable` for puts that `fails` names."""

    def __init__(self, inner: ObjectStore, fails: Callable[[str], bool] = lambda key: False) -> None:
        self.inner = inner
        self.fails = fails

    @property
    def uri(self) -> str:
        return self.inner.uri

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def get_with_etag(self, key: str) -> StoredObject:
        return self.inner.get_with_etag(key)

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        return self.inner.get_range(key, start, size_bytes)

    def head(self, key: str) -> ObjectInfo | None:
        return self.inner.head(key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        if self.fails(key):
            raise ObjectStoreUnavailable(f"no answer for {key}")
        return self.inner.put(key, data, if_absent=if_absent, if_match=if_match)

    def put_stream(self, key: str, stream: BinaryIO, size_bytes: int | None = None) -> ObjectInfo:
        return self.inner.put_stream(key, stream, size_bytes)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        return self.inner.list(prefix, start_after=start_after)

    def list_folder(self, prefix: str, *, max_objects: int | None = None) -> Folder:
        return self.inner.list_folder(prefix, max_objects=max_objects)

    def delete(self, keys: Iterable[str]) -> None:
        self.inner.delete(keys)

    def presign_put(self, key: str, expires_s: int) -> str | None:
        return self.inner.presign_put(key, expires_s)
