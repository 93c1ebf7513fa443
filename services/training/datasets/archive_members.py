"""What is in a zip or tar archive, read so that no archive can fill the memory or the disk."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, BinaryIO, cast

from services.contracts.errors import CallerError, PayloadTooLarge, UnsupportedMediaType

COPY_BYTES = 256 * 1024
MAX_HEADER_BYTES = 1024 * 1024
PADDING_BYTES = 1024 * 1024
"""What any archive may expand to: tar pads with zeros."""
DIRECTORY_BYTES_PER_ENTRY = 512
ZIP_END_BYTES = 70 * 1024
"""The end of a zip: at most 64 KiB of comment and the records before it."""
ZIP64_MARK = 0xFFFFFFFF
"""Stands where the size is in another record."""
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)


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


class Budget:
    """What the archive may still expand to."""

    def __init__(self, archive: BinaryIO, limits: ArchiveLimits) -> None:
        """Moves the archive's position."""
        self.file_bytes = limits.max_file_bytes
        self._ratio = limits.max_expansion_ratio
        self._left = PADDING_BYTES + int(archive.seek(0, io.SEEK_END) * limits.max_expansion_ratio)

    def spend(self, size_bytes: int) -> None:
        """Raises `PayloadTooLarge` once there is nothing left."""
        self._left -= size_bytes
        if self._left < 0:
            raise PayloadTooLarge(f"the archive expands to more than {self._ratio:g} times its size, the limit")


@contextmanager
def reading() -> Generator[None, None, None]:
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


def list_members(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[Member]:
    """The regular files, in the archive's order; each must be read before the next is asked for.

    Raises `UnsupportedMediaType`, `PayloadTooLarge` and `CallerError`; use it inside `reading`.
    """
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
    if _directory_bytes(archive) > limits.max_entries * DIRECTORY_BYTES_PER_ENTRY:
        raise _too_many(limits)
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


def _directory_bytes(archive: BinaryIO) -> int:
    """The size of a zip's list of entries, which the reader takes into memory whole, as the zip's end tells it.

    Where records of the size stand in several places, the largest counts. APPNOTE.TXT, 4.3.14 and 4.3.16.
    """
    archive.seek(max(0, archive.seek(0, io.SEEK_END) - ZIP_END_BYTES))
    end = archive.read()
    sizes = [0]
    for magic, form, offset in ((b"PK\x05\x06", "<L", 12), (b"PK\x06\x06", "<Q", 40)):
        at = end.rfind(magic)
        if at >= 0 and len(end) >= at + offset + struct.calcsize(form):
            (size,) = struct.unpack_from(form, end, at + offset)
            if not (form == "<L" and size == ZIP64_MARK):
                sizes.append(int(size))
    return max(sizes)


def _tar_members(archive: BinaryIO, limits: ArchiveLimits) -> Iterator[Member]:
    budget = Budget(archive, limits)  # first: it moves the file's position
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

    def __init__(self, plain: IO[bytes], budget: Budget) -> None:
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
