"""Archives of images (zip, tar, tar.gz, …), read with suspicion: everything is checked before anything is stored."""

import io
from collections.abc import Callable, Iterable, Iterator
from typing import IO, BinaryIO

from services.contracts.datasets import SPLIT_FOLDERS
from services.contracts.errors import CallerError, PayloadTooLarge
from services.training.datasets.archive_members import (
    COPY_BYTES,
    ArchiveLimits,
    Budget,
    Member,
    list_members,
    reading,
)
from services.training.datasets.layout import is_hidden
from services.training.datasets.uploads import MAX_PATH_CHARACTERS, check_path

WRAPPED_SEGMENTS = 3

Store = Callable[[str, BinaryIO], None]
"""Stores a file under a path relative to the dataset's root."""


def unpack(archive: BinaryIO, limits: ArchiveLimits, store: Store) -> int:
    """Gives every visible file of the archive to `store`; returns how many. Blocks.

    Folders that wrap everything else are left out of the paths. The archive is read twice: the first time everything
    is expanded, counted and checked, so a bad archive stores nothing.

    Raises:
        UnsupportedMediaType: neither zip nor tar.
        PayloadTooLarge: too many entries, too large a file, or too large expanded.
        CallerError: damaged, encrypted, links or devices, or paths that leave the dataset.
    """
    with reading():
        paths = list(_checked(archive, limits))
        if not paths:
            raise CallerError("the archive has no files in class folders: expected <class>/<image>")
        wrapping = _wrapping_segments(paths)
        for path in paths:
            check_path(_unwrapped(path, wrapping))
        budget = Budget(archive, limits)
        for member in _visible(list_members(archive, limits)):
            with member.open() as stream:
                store(_unwrapped(member.path, wrapping), _limited(stream, budget))
    return len(paths)


def _checked(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[str]:
    """The visible paths, once their files were expanded and found to be within the limits."""
    budget = Budget(archive, limits)
    for member in _visible(list_members(archive, limits)):
        if len(member.path) > MAX_PATH_CHARACTERS:
            raise CallerError(f"the archive has a path of {len(member.path)} characters: shorten it")
        with member.open() as stream:
            limited = _limited(stream, budget)
            while limited.read(COPY_BYTES):
                pass
        yield member.path


class _Limited(io.RawIOBase):
    """A member's content. What the archive says about sizes is not believed: bytes are counted as they come."""

    def __init__(self, stream: IO[bytes], budget: Budget) -> None:
        self._stream = stream
        self._budget = budget
        self._size_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "memoryview[int] | bytearray", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        data = self._stream.read(min(len(buffer), COPY_BYTES))
        self._size_bytes += len(data)
        self._budget.spend(len(data))
        if self._size_bytes > self._budget.file_bytes:
            raise PayloadTooLarge(f"the archive has a file of more than {self._budget.file_bytes} bytes, the limit")
        buffer[: len(data)] = data
        return len(data)


def _limited(stream: IO[bytes], budget: Budget) -> BinaryIO:
    return io.BufferedReader(_Limited(stream, budget), COPY_BYTES)


def _visible(members: Iterable[Member]) -> Iterator[Member]:
    return (member for member in members if not any(is_hidden(part) for part in member.path.split("/")))


def _wrapping_segments(paths: list[str]) -> int:
    """How many folders stand above everything. Never takes a split's folder for a wrapping one."""
    split = [path.split("/") for path in paths]
    count = 0
    while True:
        first = split[0][count]
        same = all(len(parts) >= count + WRAPPED_SEGMENTS and parts[count] == first for parts in split)
        if not same or first.lower() in SPLIT_FOLDERS:
            return count
        count += 1


def _unwrapped(path: str, wrapping: int) -> str:
    return "/".join(path.split("/")[wrapping:])
