"""Reads a dataset's files one by one: hash, size, and whether they are images that can be used."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import PurePosixPath

from ray_cluster.train.listing import ListedFile
from ray_cluster.train.read_ahead import Wanted, read_ahead
from ray_cluster.vision import images
from services.contracts.base import Sha256
from services.contracts.datasets import IMAGE_SUFFIXES, QuarantineReason
from services.contracts.errors import ImageRejected, NotFound, SourceUnreadable
from services.runtime.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class UsableImage:
    """A file that decodes."""

    file: ListedFile
    sha256: Sha256
    width: int
    """Pixels, after EXIF orientation."""
    height: int
    """Pixels, after EXIF orientation."""


@dataclass(frozen=True, slots=True)
class RejectedFile:
    """A file that cannot be used, and why."""

    file: ListedFile
    reason: QuarantineReason
    message: str


Inspected = UsableImage | RejectedFile


def inspect_files(source: ObjectStore, files: Sequence[ListedFile]) -> list[Inspected]:
    """Reads and fully decodes each file, one at a time. Raises `ObjectStoreUnavailable`; a bad file is a result."""
    refused = [_refuse_unread(file) for file in files]
    to_read = [file for file, rejected in zip(files, refused, strict=True) if rejected is None]
    contents = read_ahead(source.get, [Wanted(file.path, file.size_bytes) for file in to_read])
    return [rejected or _inspect(file, next(contents)) for file, rejected in zip(files, refused, strict=True)]


def _refuse_unread(file: ListedFile) -> RejectedFile | None:
    """The verdict on a file that its listing alone rules out."""
    suffix = PurePosixPath(file.path).suffix.lower()
    if suffix not in IMAGE_SUFFIXES:
        accepted = ", ".join(sorted(IMAGE_SUFFIXES))
        return RejectedFile(file, QuarantineReason.NOT_AN_IMAGE, f"the name does not end in one of {accepted}")
    if file.size_bytes == 0:
        return RejectedFile(file, QuarantineReason.ZERO_BYTES, "the file is empty")
    if file.size_bytes > images.MAX_BYTES:
        message = f"the file has {file.size_bytes} bytes: at most {images.MAX_BYTES} are read"
        return RejectedFile(file, QuarantineReason.TOO_LARGE, message)
    return None


def _inspect(file: ListedFile, content: Future[bytes]) -> Inspected:
    try:
        data = content.result()
        size = images.inspect(data)
    except (NotFound, SourceUnreadable) as error:
        return RejectedFile(file, QuarantineReason.UNREADABLE, f"the file was listed and cannot be read: {error}")
    except ImageRejected as error:
        return RejectedFile(file, QuarantineReason(str(error.details["reason"])), error.message)
    return UsableImage(file, hashlib.sha256(data).hexdigest(), size.width, size.height)
