"""Which keys and prefixes are allowed. Pure functions; both stores use them."""

from services.contracts.errors import CallerError

MAX_KEY_BYTES = 1024
"""S3's limit for a whole key, in UTF-8."""

MAX_SEGMENT_BYTES = 255
"""The limit that usual file systems set for one name, in UTF-8."""

RESERVED_SEGMENT = ".rekindle-store"
"""The folder in which a local store keeps its lock and its unfinished writes. No key may name it."""

_UNWRITABLE = frozenset([*(chr(code) for code in range(0x20)), "\x7f", "\ufffe", "\uffff"])


def check_readable_key(key: str) -> None:
    """Refuses what could leave the store's root or cannot be a key at all. Raises `CallerError`.

    Deliberately lenient otherwise: a user's bucket may hold keys that Rekindle itself would never write.
    """
    _check_text(key, "key")
    if not key:
        raise CallerError("an object's key is empty: name an object")
    if any(segment in {".", ".."} for segment in key.split("/")):
        raise CallerError(f"key {key!r} has a '.' or '..' segment: use the object's plain name")


def check_writable_key(key: str) -> None:
    """Refuses keys that not every store can hold, list and delete again. Raises `CallerError`."""
    check_readable_key(key)
    if "" in key.split("/"):
        raise CallerError(
            f"key {key!r} starts or ends with '/' or has an empty segment: use names joined by single '/'"
        )
    if not _UNWRITABLE.isdisjoint(key):
        raise CallerError(f"key {key!r} has control characters: remove them")
    if RESERVED_SEGMENT in key.split("/"):
        raise CallerError(f"key {key!r} uses the reserved name {RESERVED_SEGMENT!r}: choose another")


def check_prefix(prefix: str) -> None:
    """Refuses prefixes that could leave the store's root. A prefix may be empty or end within a name.

    Raises `CallerError`.
    """
    _check_text(prefix, "prefix")
    if prefix.startswith("/"):
        raise CallerError(f"prefix {prefix!r} starts with '/': prefixes are relative to the store")
    if any(segment in {".", ".."} for segment in prefix.split("/")[:-1]):
        raise CallerError(f"prefix {prefix!r} has a '.' or '..' segment: use plain folder names")


def check_folder_prefix(prefix: str) -> None:
    """As `check_prefix`, for one level of a listing: the prefix is empty or ends in `/`. Raises `CallerError`."""
    check_prefix(prefix)
    if prefix and not prefix.endswith("/"):
        raise CallerError(f"prefix {prefix!r} does not end in '/': a folder's prefix does")


def check_s3_length(full_key: str) -> None:
    """Refuses keys that are too long for S3; `full_key` includes the store's prefix. Raises `CallerError`."""
    size = len(full_key.encode())
    if size > MAX_KEY_BYTES:
        raise CallerError(f"key {full_key[:80]!r}… has {size} bytes in UTF-8, S3 allows {MAX_KEY_BYTES}: shorten it")


def check_segment_lengths(key: str) -> None:
    """Refuses keys with a name that is too long for a file system. Raises `CallerError`."""
    for segment in key.split("/"):
        size = len(segment.encode())
        if size > MAX_SEGMENT_BYTES:
            raise CallerError(
                f"name {segment[:40]!r}… has {size} bytes in UTF-8, a file system takes {MAX_SEGMENT_BYTES}: shorten it"
            )


def _check_text(text: str, what: str) -> None:
    if "\0" in text:
        raise CallerError(f"{what} {text!r} has a NUL character: remove it")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise CallerError(f"{what} {text!r} is not valid Unicode: rename the file") from None
