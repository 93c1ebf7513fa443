"""Request bodies as streams for the object store, in bounded memory."""

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from concurrent.futures import CancelledError as FutureCancelledError
from typing import BinaryIO, TypeVar

import anyio.to_thread
from fastapi import Request
from starlette.requests import ClientDisconnect

from services.contracts.errors import CallerError, PayloadTooLarge
from services.runtime.objects.keys import check_segment_lengths, check_writable_key
from services.training.datasets.layout import is_hidden

READ_TIMEOUT_S = 60
"""Longest wait for the client's next bytes."""
BUFFER_BYTES = 256 * 1024
MAX_PATH_CHARACTERS = 512
MIN_SEGMENTS = 2

Result = TypeVar("Result")


def check_path(path: str) -> None:
    """Refuses what is no path of an image in a dataset. Raises `CallerError`."""
    if len(path) > MAX_PATH_CHARACTERS:
        raise CallerError(f"the path {path[:80]!r}… has {len(path)} characters: use at most {MAX_PATH_CHARACTERS}")
    check_writable_key(path)
    check_segment_lengths(path)
    segments = path.split("/")
    if "\\" in path:
        raise CallerError(f"the path {path!r} has a backslash: separate folders with '/'")
    if len(segments) < MIN_SEGMENTS:
        raise CallerError(f"the path {path!r} names no class: use <class>/<file> or <split>/<class>/<file>")
    if any(is_hidden(segment) for segment in segments):
        raise CallerError(f"the path {path!r} is hidden, and hidden files are never used: rename it or leave it out")


class _BodyReader(io.RawIOBase):
    """A request's body as a file for other threads. Each read waits for the event loop, which waits for the client."""

    def __init__(self, chunks: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop, max_bytes: int) -> None:
        self._chunks = chunks
        self._loop = loop
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int] | bytearray", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Fills a part of the buffer; 0 at the end. Raises `PayloadTooLarge` or `CallerError`."""
        while not self._rest:
            chunk = self._next()
            if chunk is None:
                return 0
            self._size_bytes += len(chunk)
            if self._size_bytes > self._max_bytes:
                raise too_large(self._max_bytes)
            self._rest = memoryview(chunk)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    def _next(self) -> bytes | None:
        async def receive() -> bytes | None:
            async with asyncio.timeout(READ_TIMEOUT_S):
                return await anext(self._chunks, None)

        try:
            return asyncio.run_coroutine_threadsafe(receive(), self._loop).result(READ_TIMEOUT_S * 2)
        except TimeoutError as error:
            raise CallerError(f"no bytes came for {READ_TIMEOUT_S} s: send the file again") from error
        except (ClientDisconnect, FutureCancelledError) as error:
            raise CallerError("the connection was closed before the whole body was there: send it again") from error


def too_large(max_bytes: int) -> PayloadTooLarge:
    """The body is larger than the operator's limit."""
    return PayloadTooLarge(f"the body is larger than {max_bytes} bytes, this server's limit", {"max_bytes": max_bytes})


def announced_size(request: Request, max_bytes: int) -> int | None:
    """The body's size in bytes by its Content-Length, or None. Raises `PayloadTooLarge` before anything is read."""
    header = request.headers.get("content-length")
    if header is None or not header.isascii() or not header.isdigit():
        return None
    size = int(header)
    if size > max_bytes:
        raise too_large(max_bytes)
    return size


async def with_body(
    request: Request, max_bytes: int, threads: anyio.CapacityLimiter, use: Callable[[BinaryIO], Result]
) -> Result:
    """Calls `use` in a thread with the body as a stream, and returns what it returns.

    Reading raises `PayloadTooLarge` past `max_bytes`, and `CallerError` when the client goes away or falls silent.
    """
    reader = _BodyReader(request.stream(), asyncio.get_running_loop(), max_bytes)
    with io.BufferedReader(reader, BUFFER_BYTES) as body:
        return await anyio.to_thread.run_sync(use, body, limiter=threads)
