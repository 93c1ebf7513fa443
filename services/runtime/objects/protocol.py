"""The object store: the whole storage surface that the rest of Rekindle sees.

A store is rooted at a URI (`s3://bucket/prefix` or `file:///folder`); keys are relative to it, use `/`, and never
start with one. Written keys have no empty, `.` or `..` segment and no control characters, and at most 1,024 bytes in
UTF-8; a local store also allows at most 255 per segment, and no key may be another one's folder. `CallerError` says
so. All calls block: on an event loop, run them in a thread. Transient faults are retried inside with
backoff; what remains is raised as `ObjectStoreUnavailable` (try later), `SourceUnreadable` (no such bucket or folder,
or the credentials or permissions do not open it) or `NotFound`. Stores can be pickled.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing shows of an object."""

    key: str
    size_bytes: int
    etag: str
    """Changes when the content does; without quotes. Opaque: not a hash to compare across stores."""
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class Folder:
    """One level of a listing."""

    folders: list[str]
    """Names directly below the prefix, without slashes, sorted."""
    objects: list[ObjectInfo]
    """Objects directly below the prefix, sorted by key."""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's content with the etag it was read at."""

    data: bytes
    etag: str


class ObjectStore(Protocol):
    """Safe for use from several threads and, for one URI, from several processes and machines."""

    @property
    def uri(self) -> str:
        """Where the store is rooted, without a trailing slash."""
        ...

    def get(self, key: str) -> bytes:
        """The whole object. Raises `NotFound`."""
        ...

    def get_with_etag(self, key: str) -> StoredObject:
        """The whole object and its etag, for a later `put(..., if_match=)`. Raises `NotFound`."""
        ...

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """`size_bytes` bytes from `start`, fewer at the object's end. Raises `NotFound`."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """The object's listing entry, or None where there is none."""
        ...

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        """Writes the object whole or not at all.

        With `if_absent`, only when there is no such object; with `if_match`, only over that etag. Returns None when
        the condition did not hold, and then nothing was written. Of concurrent conditional writers exactly one wins,
        on every machine.
        """
        ...

    def put_stream(self, key: str, stream: BinaryIO, size_bytes: int | None = None) -> ObjectInfo:
        """Writes a stream whole or not at all, in bounded memory. A failing stream leaves no object.

        The stream's own errors pass through. Raises `CallerError` when the stream is not `size_bytes` long.
        """
        ...

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """All objects whose keys start with the prefix, in the order of their UTF-8, lazily.

        With `start_after`, a whole key like the results' (not relative to the prefix), those with greater keys. The
        first step of the iteration may raise.
        """
        ...

    def list_folder(self, prefix: str, *, max_objects: int | None = None) -> Folder:
        """One level below the prefix (which ends in `/` or is empty). Stops after `max_objects` objects.

        A folder may be empty: a local one without files, or one that the AWS console made. When it stops early,
        folders that come later may be missing.
        """
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects; those that do not exist are no error."""
        ...

    def presign_put(self, key: str, expires_s: int) -> str | None:
        """A URL that accepts the object's bytes by PUT without credentials, or None where the store has no such."""
        ...
