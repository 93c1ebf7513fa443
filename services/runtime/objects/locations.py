"""From a URI to the store or the object that it names."""

import re
from pathlib import Path
from urllib.parse import unquote

from services.contracts.errors import CallerError
from services.runtime.objects.keys import check_writable_key
from services.runtime.objects.local import LocalStore
from services.runtime.objects.protocol import ObjectStore
from services.runtime.objects.retry import RetryPolicy

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,253}[A-Za-z0-9]")
_FORMS = "use s3://bucket/prefix or file:///folder"


def open_store(uri: str, *, retry: RetryPolicy | None = None) -> ObjectStore:
    """The store rooted at `s3://bucket/prefix` or `file:///folder` (percent-encoded, as `Path.as_uri()` writes it).

    Opening makes no request and writes nothing. The result's `uri` is the normal form, without a trailing slash.
    `retry` says how patient an S3 store is. Raises `CallerError` for other schemes, relative paths and `..` segments.
    """
    scheme, rest = _split(uri)
    if scheme == "s3":
        # boto3 takes half a second and 25 MB to import; processes on a local folder do without.
        from services.runtime.objects.s3 import S3Store  # noqa: PLC0415

        return S3Store(*_bucket_and_prefix(uri, rest), retry=retry)
    return LocalStore(_local_path(uri, rest))


def open_object(uri: str) -> tuple[ObjectStore, str]:
    """The store and the key of one object: `s3://bucket/a/b.h5` gives the store `s3://bucket/a` and the key `b.h5`.

    Raises `CallerError` as `open_store` does, and where the URI names no object.
    """
    scheme, rest = _split(uri)
    if scheme == "file":
        path = _local_path(uri, rest)
        folder, name = path.parent.as_uri(), path.name
    else:
        folder, _, name = uri.rpartition("/")
    if not name or uri.endswith("/") or folder == "s3:/":
        raise CallerError(f"{uri!r} names no object: it must end in an object's name")
    return open_store(folder), name


def _split(uri: str) -> tuple[str, str]:
    scheme, separator, rest = uri.partition("://")
    if not separator or scheme not in {"s3", "file"}:
        raise CallerError(f"cannot open {uri!r}: {_FORMS}")
    return scheme, rest


def _local_path(uri: str, rest: str) -> Path:
    path = unquote(rest)
    if not path.startswith("/"):
        raise CallerError(f"{uri!r} is not an absolute path: {_FORMS}")
    if "\0" in path or any(segment in {".", ".."} for segment in path.split("/")):
        raise CallerError(f"{uri!r} has a '.' or '..' segment or a NUL: write the path out")
    return Path(path)


def _bucket_and_prefix(uri: str, rest: str) -> tuple[str, str]:
    bucket, _, prefix = rest.partition("/")
    if not _BUCKET.fullmatch(bucket):
        raise CallerError(f"{uri!r} names no valid bucket: {_FORMS}")
    prefix = prefix.removesuffix("/")
    if prefix:
        check_writable_key(prefix)
    return bucket, prefix
