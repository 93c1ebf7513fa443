"""Opaque places in a list, newest first: the sort key of the last item shown."""

import base64
import binascii
import json
from datetime import UTC, datetime
from typing import Annotated

from fastapi import Query

from services.contracts.errors import CallerError

DEFAULT_PAGE_SIZE = 50
MAX_PAGE_SIZE = 200

Limit = Annotated[int, Query(ge=1, le=MAX_PAGE_SIZE, description="Most items on a page.")]
Cursor = Annotated[
    str | None, Query(max_length=1024, description="`next_cursor` of the page before; omit for the first page.")
]


def encode(at: datetime, key: str) -> str:
    """The cursor of an item that was made at `at` and is called `key`."""
    return base64.urlsafe_b64encode(json.dumps([at.isoformat(), key]).encode()).decode().rstrip("=")


def decode(cursor: str) -> tuple[datetime, str]:
    """What `encode` was given. Raises `CallerError` for anything that it did not make."""
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        value: object = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        match value:
            case [str(at), str(key)] if (parsed := datetime.fromisoformat(at)).tzinfo is not None and _is_text(key):
                return parsed.astimezone(UTC), key
            case _:
                pass
    except (binascii.Error, UnicodeDecodeError, ValueError, OverflowError, RecursionError):
        pass
    raise CallerError(f"{cursor[:80]!r} is no cursor of this server: use `next_cursor` of the page before, unchanged")


def _is_text(key: str) -> bool:
    """Whether a database can take it: valid Unicode without NUL. Raises `UnicodeEncodeError`, a `ValueError`."""
    return "\0" not in key and bool(key.encode())
