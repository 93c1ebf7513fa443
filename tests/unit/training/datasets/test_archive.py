"""Archives: what is good arrives whole, what is bad stores nothing."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from typing import BinaryIO

import pytest

from services.contracts.errors import CallerError, PayloadTooLarge, RekindleError, UnsupportedMediaType
from services.training.datasets.archive import unpack
from services.training.datasets.archive_members import ArchiveLimits

LIMITS = ArchiveLimits(max_entries=100, max_file_bytes=10_000_000, max_expansion_ratio=100)
IMAGES = {"cat/1.jpg": b"cat one", "cat/2.jpg": b"cat two", "dog/1.jpg": b"dog one"}


def zipped(files: dict[str, bytes], change: Callable[[zipfile.ZipInfo], None] = lambda info: None) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            change(info)
            archive.writestr(info, data)
    return buffer


def tarred(files: dict[str, bytes], mode: str = "w:gz", *extra: tarfile.TarInfo) -> io.BytesIO:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in extra:
            archive.addfile(info)
    return buffer


def unpacked(archive: BinaryIO, limits: ArchiveLimits = LIMITS) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    count = unpack(archive, limits, lambda path, stream: found.update({path: stream.read()}))
    assert count == len(found)
    return found


def refused(archive: BinaryIO, error: type[RekindleError], match: str, limits: ArchiveLimits = LIMITS) -> None:
    """Refused with this error, before anything was stored."""
    stored: list[str] = []
    with pytest.raises(error, match=match):
        unpack(archive, limits, lambda path, _stream: stored.append(path))
    assert stored == []


@pytest.mark.parametrize(
    "archive",
    [zipped(IMAGES), *(tarred(IMAGES, mode) for mode in ("w", "w:gz", "w:bz2", "w:xz"))],
    ids=["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"],
)
def test_every_format_gives_the_same_files(archive: io.BytesIO) -> None:
    assert unpacked(archive) == IMAGES


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("wrapping", ["photos/", "./", "./a/b/"])
def test_folders_that_wrap_everything_are_left_out(
    pack: Callable[[dict[str, bytes]], io.BytesIO], wrapping: str
) -> None:
    assert unpacked(pack({wrapping + name: data for name, data in IMAGES.items()})) == IMAGES


def test_a_lone_train_folder_is_a_split_and_stays() -> None:
    files = {f"train/{name}": data for name, data in IMAGES.items()}
    assert unpacked(zipped(files)) == files


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_hidden_files_are_left_out(pack: Callable[[dict[str, bytes]], io.BytesIO]) -> None:
    hidden = {"__MACOSX/cat/._1.jpg": b"x", ".DS_Store": b"x", "cat/.hidden/1.jpg": b"x"}
    assert unpacked(pack(IMAGES | hidden)) == IMAGES


def test_unicode_names_arrive_as_they_are() -> None:
    files = {"été/1.jpg": b"a", "花/☃ 1.jpg": b"b"}
    assert unpacked(zipped(files)) == files
    assert unpacked(tarred(files)) == files


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize("path", ["../evil/1.jpg", "cat/../../evil.jpg", "/etc/cron.d/evil", "C:\\evil\\1.jpg"])
def test_paths_that_leave_the_dataset(pack: Callable[[dict[str, bytes]], io.BytesIO], path: str) -> None:
    refused(pack(IMAGES | {path: b"x"}), CallerError, "leaves the dataset")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar(kind: bytes) -> None:
    info = tarfile.TarInfo("cat/link.jpg")
    info.type, info.linkname = kind, "/etc/passwd"
    refused(tarred(IMAGES, "w:gz", info), CallerError, "link or device")


def test_links_in_a_zip() -> None:
    def to_link(info: zipfile.ZipInfo) -> None:
        info.external_attr = 0o120777 << 16

    refused(zipped({"cat/link.jpg": b"/etc/passwd"}, to_link), CallerError, "link or device")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb(pack: Callable[[dict[str, bytes]], io.BytesIO]) -> None:
    refused(pack({"cat/1.jpg": bytes(9_000_000)}), PayloadTooLarge, "100 times its size")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_bomb_of_many_parts(pack: Callable[[dict[str, bytes]], io.BytesIO]) -> None:
    parts = {f"cat/{n}.jpg": bytes(400_000) for n in range(50)}
    refused(pack(parts), PayloadTooLarge, "times its size")


def test_a_bomb_in_a_hidden_file_of_a_tar() -> None:
    refused(tarred({".hidden/1.jpg": bytes(9_000_000), **IMAGES}), PayloadTooLarge, "times its size")


def test_a_tar_header_that_would_fill_the_memory() -> None:
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 50_000_000
    archive = io.BytesIO(gzip.compress(info.tobuf() + bytes(info.size) + bytes(1024)))
    refused(archive, CallerError, "extended header")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_file_that_is_too_large(pack: Callable[[dict[str, bytes]], io.BytesIO]) -> None:
    limits = ArchiveLimits(max_entries=100, max_file_bytes=1000, max_expansion_ratio=10_000)
    refused(pack({"cat/1.jpg": bytes(1001)}), PayloadTooLarge, "more than 1000 bytes", limits)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_too_many_entries(pack: Callable[[dict[str, bytes]], io.BytesIO]) -> None:
    limits = ArchiveLimits(max_entries=2, max_file_bytes=1000, max_expansion_ratio=10_000)
    refused(pack(IMAGES), PayloadTooLarge, "more than 2 entries", limits)


def test_a_zip_whose_list_of_entries_would_fill_the_memory() -> None:
    limits = ArchiveLimits(max_entries=2, max_file_bytes=1000, max_expansion_ratio=10_000)
    archive = zipped({"a/" + "x" * 300 + f"{number}.jpg": b"" for number in range(4)})
    refused(archive, PayloadTooLarge, "more than 2 entries", limits)


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_half_an_archive(pack: Callable[[dict[str, bytes]], io.BytesIO]) -> None:
    noise = bytes(range(256)) * 200
    whole = pack(dict.fromkeys(IMAGES, noise)).getvalue()
    refused(io.BytesIO(whole[: len(whole) // 2]), CallerError, "archive")


@pytest.mark.parametrize("pack", [zipped, tarred])
def test_a_flipped_bit(pack: Callable[[dict[str, bytes]], io.BytesIO]) -> None:
    data = bytearray(pack({"cat/1.jpg": bytes(range(256)) * 50}).getvalue())
    data[len(data) // 2] ^= 0x40
    refused(io.BytesIO(bytes(data)), CallerError, "cannot be read")


@pytest.mark.parametrize("data", [b"", b"x", b"\xff\xd8\xff\xe0 no archive", b"PK\x03\x04", b"\x1f\x8b\x08"])
def test_what_is_no_archive(data: bytes) -> None:
    refused(io.BytesIO(data), CallerError, "archive")


def test_an_image_is_no_archive() -> None:
    refused(io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(2000)), UnsupportedMediaType, "neither a zip nor a tar")


def test_an_encrypted_zip() -> None:
    data = bytearray(zipped({"cat/1.jpg": b"x"}).getvalue())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    refused(io.BytesIO(bytes(data)), CallerError, "encrypted")


def test_files_outside_class_folders() -> None:
    refused(zipped({"1.jpg": b"x", "2.jpg": b"x"}), CallerError, "names no class")


def test_an_archive_without_files() -> None:
    refused(zipped({}), CallerError, "no files")
