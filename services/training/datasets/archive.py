"""Archives of images (zip, tar, tar.gz, …), read with suspicion: everything is checked before anything is stored."""

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

from services.contracts.datasets import SPLIT_FOLDERS
from services.contracts.errors import CallerError, PayloadTooLarge, UnsupportedMediaType
from services.training.datasets.layout import is_hidden
from services.training.datasets.uploads import MAX_PATH_CHARACTERS, check_path

COPY_BYTES = 256 * 1024
MAX_HEADER_BYTES = 1024 * 1024
PADDING_BYTES = 1024 * 1024
"""What any archive may expand to: tar pads with zeros."""
WRAPPED_SEGMENTS = 3


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How much an archive may hold."""

    max_entries: int
    max_file_bytes: int
    max_expansion_ratio: float
    """Total bytes of all files, as a multiple of the archive's own size."""


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive."""

    path: str
    """As the archive has it."""
    open: Callable[[], IO[bytes]]


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
    with _reading():
        paths = list(_checked(archive, limits))
        if not paths:
            raise CallerError("the archive has no files in class folders: expected <class>/<image>")
        wrapping = _wrapping_segments(paths)
        for path in paths:
            check_path(_unwrapped(path, wrapping))
        budget = _Budget(archive, limits)
        for member in _visible(_members(archive, limits)):
            with member.open() as stream:
                store(_unwrapped(member.path, wrapping), _limited(stream, budget))
    return len(paths)


def _checked(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[str]:
    """The visible paths, once their files were expanded and found to be within the limits."""
    budget = _Budget(archive, limits)
    for member in _visible(_members(archive, limits)):
        if len(member.path) > MAX_PATH_CHARACTERS:
            raise CallerError(f"the archive has a path of {len(member.path)} characters: shorten it")
        with member.open() as stream:
            limited = _limited(stream, budget)
            while limited.read(COPY_BYTES):
                pass
        yield member.path


class _Budget:
    """What the archive may still expand to."""

    def __init__(self, archive: BinaryIO, limits: ArchiveLimits) -> None:
        self.file_bytes = limits.max_file_bytes
        self._ratio = limits.max_expansion_ratio
        self._left = PADDING_BYTES + int(archive.seek(0, io.SEEK_END) * limits.max_expansion_ratio)

    def spend(self, size_bytes: int) -> None:
        self._left -= size_bytes
        if self._left < 0:
            raise PayloadTooLarge(f"the archive expands to more than {self._ratio:g} times its size, the limit")


class _Limited(io.RawIOBase):
    """A member's content. What the archive says about sizes is not believed: bytes are counted as they come."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
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


def _limited(stream: IO[bytes], budget: _Budget) -> BinaryIO:
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


_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)

# --- formats --------------------------------------------------------------------------------------------------------


@contextmanager
def _reading() -> Generator[None, None, None]:
    """Turns what damaged archives raise into the caller's error."""
    try:
        yield
    except (*_DAMAGED, NotImplementedError, UnicodeError) as error:
        raise _damaged(error) from error
    except OSError as error:
        # Decompressors raise it without a number for data that they cannot make sense of.
        if error.errno is not None:
            raise
        raise _damaged(error) from error


def _damaged(error: Exception) -> CallerError:
    return CallerError(f"the archive cannot be read, it is damaged or not complete: {error}")


def _members(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[Member]:
    if zipfile.is_zipfile(archive):
        yield from _zip_members(archive, limits)
    elif _is_tar(archive):
        yield from _tar_members(archive, limits)
    elif _starts_with(archive, b"PK"):
        raise CallerError("the archive cannot be read: it is a zip without its end, send it again")
    else:
        raise UnsupportedMediaType("the body is neither a zip nor a tar archive (tar.gz, tar.bz2, tar.xz)")


def _too_many(limits: ArchiveLimits) -> PayloadTooLarge:
    return PayloadTooLarge(f"the archive has more than {limits.max_entries} entries, the limit")


def _check_name(name: str) -> None:
    """Refuses absolute and climbing paths, hidden ones too: an archive that has them means no good."""
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or (len(parts[0]) == 2 and parts[0][1] == ":"):
        raise CallerError(
            f"the archive has the path {name[:200]!r}, which leaves the dataset: pack relative paths only"
        )


def _zip_members(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        infos = opened.infolist()
        if len(infos) > limits.max_entries:
            raise _too_many(limits)
        for info in infos:
            _check_name(info.filename)
            kind = (info.external_attr >> 16) & 0o170000
            if info.is_dir():
                continue
            if kind not in (0, 0o100000):
                raise CallerError(
                    f"the archive has a link or device, {info.filename[:200]!r}: pack the files themselves"
                )
            if info.flag_bits & 0x1:
                raise CallerError("the archive is encrypted: pack it without a password")
            yield Member(_plain(info.filename), lambda info=info: opened.open(info))


def _tar_members(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[Member]:
    budget = _Budget(archive, limits)  # first: it moves the file's position
    with (
        _decompressed(archive) as plain,
        tarfile.open(fileobj=(whole := _Expanding(plain, budget)), mode="r:") as opened,
    ):
        for count, info in enumerate(opened):
            if count >= limits.max_entries:
                raise _too_many(limits)
            _check_name(info.name)
            if info.isdir():
                continue
            if not info.isreg():
                raise CallerError(f"the archive has a link or device, {info.name[:200]!r}: pack the files themselves")
            yield Member(_plain(info.name), lambda info=info: _extracted(opened, info))
        # A compressed archive has its checksum behind its last byte.
        while whole.read(COPY_BYTES):
            pass


def _starts_with(archive: BinaryIO, magic: bytes) -> bool:
    archive.seek(0)
    return archive.read(len(magic)) == magic


def _is_tar(archive: BinaryIO) -> bool:
    """Looks at the first header only; `tarfile.is_tarfile` would read what a header claims to be."""
    try:
        with _decompressed(archive) as plain:
            block = plain.read(tarfile.BLOCKSIZE)
        tarfile.TarInfo.frombuf(block, tarfile.ENCODING, "surrogateescape")
    except (OSError, *_DAMAGED):
        return False
    return True


@contextmanager
def _decompressed(archive: BinaryIO) -> Generator[IO[bytes], None, None]:
    """The archive's bytes without the compression that its first bytes tell of."""
    archive.seek(0)
    magic = archive.read(6)
    archive.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        plain = cast("IO[bytes]", gzip.GzipFile(fileobj=archive))
    elif magic.startswith(b"BZh"):
        plain = cast("IO[bytes]", bz2.BZ2File(archive))
    elif magic.startswith(b"\xfd7zXZ\0"):
        plain = cast("IO[bytes]", lzma.LZMAFile(archive))  # noqa: SIM115 (closed below)
    else:
        yield archive  # not ours to close
        return
    with plain:
        yield plain


class _Expanding(io.RawIOBase):
    """A decompressed tar, which also refuses to go further than the budget allows or to read much at a time.

    Skipping a file decompresses it all the same, and tar's extended headers are read into memory whole.
    """

    def __init__(self, plain: IO[bytes], budget: _Budget) -> None:
        self._plain = plain
        self._budget = budget
        self._furthest = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._plain.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        if whence == io.SEEK_SET:
            self._reach(offset)
        return self._plain.seek(offset, whence)

    def read(self, size: int = -1, /) -> bytes:
        if size < 0 or size > MAX_HEADER_BYTES:
            raise CallerError("the archive has an extended header of unusual size: pack it again with another program")
        self._reach(self._plain.tell() + size)
        return self._plain.read(size)

    def _reach(self, position: int) -> None:
        if position > self._furthest:
            self._budget.spend(position - self._furthest)
            self._furthest = position


def _extracted(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = opened.extractfile(info)
    if stream is None:
        raise CallerError(f"the archive's entry {info.name[:200]!r} cannot be read: pack it again")
    return stream


def _plain(name: str) -> str:
    """Without the `./` that tar puts before paths and without doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
