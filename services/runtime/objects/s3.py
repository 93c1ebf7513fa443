"""An object store in an S3 bucket, or in a server that speaks S3 and keeps its conditions (`self_test` checks that).

Conditional writes and lost answers: when a request fails on the way, the write may have happened. Its repetition then
meets its own result and is refused. So every write carries a token of its own in the object's metadata, and a refused
writer reads it back: its own token means that it won. That is stricter than comparing bytes, which two writers of the
same bytes would both pass.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC
from email.utils import parsedate_to_datetime
from functools import partial
from itertools import islice
from typing import BinaryIO, TypeVar

from services.contracts.base import utc_now
from services.contracts.errors import NotFound, ObjectStoreUnavailable, SourceUnreadable
from services.runtime.objects import keys as rules
from services.runtime.objects import s3_errors
from services.runtime.objects.protocol import Folder, ObjectInfo, StoredObject
from services.runtime.objects.retry import RetryPolicy, call_with_retry
from services.runtime.objects.s3_client import Found, Listed, ListedObject, S3Client, Written, shared_client
from services.runtime.objects.s3_upload import MultipartUpload, check_size, part_bytes, read_part

Result = TypeVar("Result")

_WRITE_TOKEN = "rekindle-write"  # noqa: S105 - a metadata key, no secret
_DELETE_BATCH = 1000
_MAX_PRESIGN_S = 7 * 24 * 3600


class S3Store:
    """`ObjectStore` over `s3://{bucket}/{prefix}`. Opening makes no request; credentials are boto3's.

    Folder markers (empty objects whose key ends in `/`, as the AWS console makes) are not listed as objects.
    """

    def __init__(
        self,
        bucket: str,
        prefix: str,
        *,
        retry: RetryPolicy | None = None,
        client: Callable[[], S3Client] = shared_client,
    ) -> None:
        """`prefix` has no slash at either end. `client` must be a module's function for the store to be picklable."""
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._retry = retry or RetryPolicy()
        self._client = client
        self._bucket_seen = False

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    @property
    def uri(self) -> str:
        """Where the store is rooted, without a trailing slash."""
        return f"s3://{self._bucket}/{self._prefix}".rstrip("/")

    # --- reading ---

    def get(self, key: str) -> bytes:
        """The whole object. Raises `NotFound`, `SourceUnreadable`, `ObjectStoreUnavailable`."""
        return self.get_with_etag(key).data

    def get_with_etag(self, key: str) -> StoredObject:
        """The whole object and its etag. Raises as `get` does."""
        target = self._readable(key)

        def read() -> StoredObject:
            answer = self._client().get_object(**target)
            return StoredObject(answer["Body"].read(), _etag(answer))

        return self._call(f"reading {self._name(key)}", read)

    def get_range(self, key: str, start: int, size_bytes: int) -> bytes:
        """`size_bytes` bytes from `start`, fewer at the end. Raises as `get` does."""
        if start < 0 or size_bytes < 0:
            raise ValueError(f"start {start} and size {size_bytes} must not be negative")
        target = self._readable(key)
        if size_bytes == 0:
            if self.head(key) is None:
                raise NotFound(f"{self._name(key)} does not exist")
            return b""

        def read() -> bytes:
            last = start + size_bytes - 1
            return self._client().get_object(**target, Range=f"bytes={start}-{last}")["Body"].read()

        try:
            return self._call(f"reading {self._name(key)}", read)
        except s3_errors.BeyondEnd:
            return b""

    def head(self, key: str) -> ObjectInfo | None:
        """The object's listing entry, or None. Raises `SourceUnreadable`, `ObjectStoreUnavailable`."""
        found = self._head(key)
        if found is None:
            self._check_bucket()
            return None
        return _info_of_head(key, found)

    def list(self, prefix: str, *, start_after: str | None = None) -> Iterator[ObjectInfo]:
        """All objects below the prefix, in key order, a page of up to 1,000 at a time. The first step may raise."""
        rules.check_prefix(prefix)
        arguments: dict[str, object] = {"Prefix": self._prefix + prefix}
        if start_after:
            arguments["StartAfter"] = self._prefix + start_after
        for page in self._pages(prefix, arguments):
            yield from self._objects(page)

    def list_folder(self, prefix: str, *, max_objects: int | None = None) -> Folder:
        """One level below the prefix. With `max_objects`, folders after the last object's page may be missing."""
        rules.check_folder_prefix(prefix)
        full = self._prefix + prefix
        folders: list[str] = []
        objects: list[ObjectInfo] = []
        for page in self._pages(prefix, {"Prefix": full, "Delimiter": "/"}):
            names = (found["Prefix"][len(full) : -1] for found in page.get("CommonPrefixes", []))
            folders.extend(name for name in names if name)
            objects.extend(self._objects(page))
            if max_objects is not None and len(objects) >= max_objects:
                del objects[max_objects:]
                break
        return Folder(sorted(folders), objects)

    # --- writing ---

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo | None:
        """Writes the object whole or not at all. None when the condition did not hold.

        When an answer was lost and the object has been written over since, None is returned though the write happened.
        """
        if if_absent and if_match is not None:
            raise ValueError("if_absent and if_match exclude each other")
        target = self._writable(key)
        condition: dict[str, str] = {}
        if if_absent:
            condition["IfNoneMatch"] = "*"
        if if_match is not None:
            condition["IfMatch"] = if_match.strip('"')
        metadata = _new_metadata()

        def write() -> Written:
            return self._client().put_object(**target, **condition, Body=data, Metadata=metadata)

        try:
            written = self._call(f"writing {self._name(key)}", write)
        except s3_errors.ConditionFailed:
            return self._own_write(key, metadata)
        except NotFound:
            if if_match is None:
                raise
            return None  # If-Match where there is nothing
        return _info_of_write(key, len(data), written)

    def put_stream(self, key: str, stream: BinaryIO, size_bytes: int | None = None) -> ObjectInfo:
        """Writes a stream whole or not at all, holding one part. Raises `CallerError` when it is not `size_bytes` long.

        The stream's own errors pass through; the upload is then aborted.
        """
        what = f"writing {self._name(key)}"
        target = self._writable(key)
        first_bytes = part_bytes(1, size_bytes)
        first = read_part(stream, first_bytes)
        if len(first) < first_bytes:
            check_size(what, len(first), size_bytes)
            written = self.put(key, first)
            assert written is not None  # noqa: S101 - unconditional
            return written
        metadata = _new_metadata()
        upload = MultipartUpload(self._client, partial(self._call, what), what, target)
        try:
            upload.run(first, stream, size_bytes, metadata)
        except s3_errors.NoSuchUpload as error:
            own = self._own_write(key, metadata)
            if own is None:
                raise ObjectStoreUnavailable(f"{what}: S3 dropped the upload before it was complete") from error
            return own
        written = self.head(key)
        if written is None:
            raise ObjectStoreUnavailable(f"{what}: the object was deleted while it was written")
        return written

    def delete(self, keys: Iterable[str]) -> None:
        """Deletes objects, 1,000 a request; those that do not exist are no error."""
        remaining = iter(keys)
        while batch := [{"Key": self._readable(key)["Key"]} for key in islice(remaining, _DELETE_BATCH)]:
            self._delete_batch(batch)

    def presign_put(self, key: str, expires_s: int) -> str | None:
        """A URL for one PUT of the object's bytes. It is good for `expires_s`, or while the signing credentials are."""
        if not 1 <= expires_s <= _MAX_PRESIGN_S:
            raise ValueError(f"expires_s must be 1 to {_MAX_PRESIGN_S}: {expires_s}")
        target = self._writable(key)
        return self._call(
            f"signing a URL for {self._name(key)}",
            lambda: self._client().generate_presigned_url("put_object", Params=target, ExpiresIn=expires_s),
        )

    # --- inside ---

    def _name(self, key: str) -> str:
        return f"s3://{self._bucket}/{self._prefix}{key}"

    def _readable(self, key: str) -> dict[str, str]:
        rules.check_readable_key(key)
        rules.check_s3_length(self._prefix + key)
        return {"Bucket": self._bucket, "Key": self._prefix + key}

    def _writable(self, key: str) -> dict[str, str]:
        rules.check_writable_key(key)
        return self._readable(key)

    def _call(self, what: str, operation: Callable[[], Result]) -> Result:
        def attempt() -> Result:
            try:
                return operation()
            except s3_errors.BOTO_FAILURES as error:
                raise s3_errors.explain(error, what) from error

        return call_with_retry(attempt, self._retry)

    def _head(self, key: str) -> Found | None:
        target = self._readable(key)
        try:
            return self._call(f"reading {self._name(key)}", lambda: self._client().head_object(**target))
        except NotFound:
            return None

    def _check_bucket(self) -> None:
        """Raises `SourceUnreadable` where the bucket is missing: a HEAD's 404 does not say what is. Asks once."""
        if self._bucket_seen:
            return
        try:
            self._call(f"reading {self.uri}", lambda: self._client().head_bucket(Bucket=self._bucket))
        except NotFound:
            raise SourceUnreadable(
                f"reading {self.uri}: the bucket does not exist: check its name and the endpoint",
                {"reason": "NoSuchBucket"},
            ) from None
        except SourceUnreadable:
            pass  # it exists; only its listing is not allowed
        self._bucket_seen = True

    def _pages(self, prefix: str, arguments: dict[str, object]) -> Iterator[Listed]:
        what = f"listing {self._name(prefix)}"

        def read(continuation: dict[str, str]) -> Listed:
            return self._client().list_objects_v2(Bucket=self._bucket, **arguments, **continuation)

        page = self._call(what, lambda: read({}))
        yield page
        while page.get("IsTruncated"):
            token = page.get("NextContinuationToken", "")
            page = self._call(what, partial(read, {"ContinuationToken": token}))
            yield page

    def _objects(self, page: Listed) -> Iterator[ObjectInfo]:
        for found in page.get("Contents", []):
            if not _is_folder_marker(found):
                key = found["Key"][len(self._prefix) :]
                yield ObjectInfo(key, found["Size"], _etag(found), found["LastModified"].astimezone(UTC))

    def _own_write(self, key: str, metadata: dict[str, str]) -> ObjectInfo | None:
        """The object's entry if it is what the write with this metadata wrote, else None."""
        found = self._head(key)
        if found is None or found["Metadata"].get(_WRITE_TOKEN) != metadata[_WRITE_TOKEN]:
            return None
        return _info_of_head(key, found)

    def _delete_batch(self, batch: Iterable[dict[str, str]]) -> None:
        what = f"deleting below {self.uri}"
        request = {"Objects": [*batch], "Quiet": True}
        answer = self._call(what, lambda: self._client().delete_objects(Bucket=self._bucket, Delete=request))
        for failed in answer.get("Errors", []):
            message = f"{what}: {failed['Key']}: {failed['Code']} {failed.get('Message', '')}"
            if failed["Code"] == "AccessDenied":
                raise SourceUnreadable(f"{message}: the credentials do not allow it", {"reason": failed["Code"]})
            raise ObjectStoreUnavailable(message, {"reason": failed["Code"]})


def _new_metadata() -> dict[str, str]:
    return {_WRITE_TOKEN: secrets.token_hex(16)}


def _etag(answer: Found | Written | ListedObject) -> str:
    return answer["ETag"].strip('"')


def _is_folder_marker(found: ListedObject) -> bool:
    return found["Key"].endswith("/") and found["Size"] == 0


def _info_of_head(key: str, found: Found) -> ObjectInfo:
    return ObjectInfo(key, found["ContentLength"], _etag(found), found["LastModified"].astimezone(UTC))


def _info_of_write(key: str, size_bytes: int, written: Written) -> ObjectInfo:
    sent_at = written["ResponseMetadata"]["HTTPHeaders"].get("date")
    modified_at = parsedate_to_datetime(sent_at).astimezone(UTC) if sent_at else utc_now()
    return ObjectInfo(key, size_bytes, _etag(written), modified_at)
