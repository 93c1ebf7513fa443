"""Images that lie in a bucket."""

from services.contracts.datasets import QuarantineReason
from services.contracts.errors import ImageRejected, NotFound, SourceUnreadable
from services.runtime.objects import open_object


def fetch_image(uri: str, max_bytes: int) -> bytes:
    """The object's bytes. Blocks; run it in a thread. The caller has checked that the URI may be read.

    Raises:
        SourceUnreadable: there is no such object, or the credentials do not open it.
        ImageRejected: it has more than `max_bytes` bytes.
        CallerError: the URI names no object.
        ObjectStoreUnavailable: try again.
    """
    store, key = open_object(uri)
    info = store.head(key)
    if info is None:
        raise _missing(uri)
    if info.size_bytes > max_bytes:
        raise _too_large(uri, info.size_bytes, max_bytes)
    try:
        data = store.get_range(key, 0, max_bytes + 1)
    except NotFound as error:
        raise _missing(uri) from error
    if len(data) > max_bytes:  # it was replaced since
        raise _too_large(uri, len(data), max_bytes)
    return data


def _missing(uri: str) -> SourceUnreadable:
    return SourceUnreadable(f"there is no object {uri!r}", {"uri": uri})


def _too_large(uri: str, size_bytes: int, max_bytes: int) -> ImageRejected:
    return ImageRejected(
        f"{uri!r} has {size_bytes} bytes: at most {max_bytes} are read",
        {"uri": uri, "reason": QuarantineReason.TOO_LARGE.value},
    )
