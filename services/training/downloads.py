"""Files in the bucket on their way to a client, in bounded memory."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

from services.contracts.base import ObjectRef
from services.contracts.errors import CorruptObject, NotFound
from services.runtime.objects import ObjectStore

CHUNK_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Download:
    """A file of a manifest, on its way from the bucket."""

    ref: ObjectRef
    chunks: AsyncIterator[bytes]

    def headers(self, file_name: str) -> Mapping[str, str]:
        """Of the response that carries it."""
        return {
            "content-length": str(self.ref.size_bytes),
            "content-disposition": f'attachment; filename="{file_name}"',
            "etag": f'"{self.ref.sha256}"',
        }


async def download(store: ObjectStore, ref: ObjectRef) -> Download:
    """Begins to read the file.

    Raises:
        NotFound: it was removed from the bucket.
        CorruptObject: it is not the one that was made.
        ObjectStoreUnavailable: try again.
    """
    info = await asyncio.to_thread(store.head, ref.key)
    if info is None:
        raise NotFound(f"{ref.key} is no longer in the bucket", {"key": ref.key})
    if info.size_bytes != ref.size_bytes:
        raise CorruptObject(f"{ref.key} has {info.size_bytes} bytes, its record says {ref.size_bytes}")
    first = await asyncio.to_thread(store.get_range, ref.key, 0, CHUNK_BYTES)
    return Download(ref, _chunks(store, ref, first))


async def _chunks(store: ObjectStore, ref: ObjectRef, first: bytes) -> AsyncIterator[bytes]:
    """Once it has begun, an error can only break the response off, and its length tells the client."""
    yield first
    for start in range(CHUNK_BYTES, ref.size_bytes, CHUNK_BYTES):
        yield await asyncio.to_thread(store.get_range, ref.key, start, CHUNK_BYTES)
