"""Reads a dataset's files one by one: hash, size, and whether they are images that can be used."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import PurePosixPath

from ray_cluster.train.listing import ListedFile
from ray_cluster.train.read_ahead import Wanted, read_ahead
from ray_cluster.vision import images
from services.contracts.base import Sha256
from services.contracts.datasets import IMAGE_SUFFIXES, QuarantineReason
from services.contracts.errors import CallerError, ImageRejected, NotFound, SourceUnreadable
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


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a file is not used."""

    reason: QuarantineReason
    message: str


Examine = Callable[[bytes, Sha256], images.ImageSize]
"""Decodes all of an image, whose hash it is told. Raises `ImageRejected`."""


def _examine(data: bytes, sha256: Sha256) -> images.ImageSize:
    return images.inspect(data)


def inspect_files(source: ObjectStore, files: Sequence[ListedFile], examine: Examine = _examine) -> list[Inspected]:
    """Reads and fully decodes each file, one at a time. Raises `ObjectStoreUnavailable`; a bad file is a result."""
    refused = [refuse_unread(file.path, file.size_bytes) for file in files]
    to_read = [file for file, refusal in zip(files, refused, strict=True) if refusal is None]
    contents = read_ahead(source.get, [Wanted(file.path, file.size_bytes) for file in to_read])
    return [
        RejectedFile(file, refusal.reason, refusal.message) if refusal else _inspect(file, next(contents), examine)
        for file, refusal in zip(files, refused, strict=True)
    ]


def refuse_unread(path: str, size_bytes: int) -> Refusal | None:
    """The verdict on a file that its listing alone rules out."""
    if PurePosixPath(path).suffix.lower() not in IMAGE_SUFFIXES:
        accepted = ", ".join(sorted(IMAGE_SUFFIXES))
        return Refusal(QuarantineReason.NOT_AN_IMAGE, f"the name does not end in one of {accepted}")
    if size_bytes == 0:
        return Refusal(QuarantineReason.ZERO_BYTES, "the file is empty")
    if size_bytes > images.MAX_BYTES:
        message = f"the file has {size_bytes} bytes: at most {images.MAX_BYTES} are read"
        return Refusal(QuarantineReason.TOO_LARGE, message)
    return None


def refuse(error: CallerError) -> Refusal:
    """The verdict on a file that could not be read, or whose bytes are no image that can be used."""
    if isinstance(error, ImageRejected):
        return Refusal(QuarantineReason(str(error.details["reason"])), error.message)
    return Refusal(QuarantineReason.UNREADABLE, f"the file was listed and cannot be read: {error}")


def _inspect(file: ListedFile, content: Future[bytes], examine: Examine) -> Inspected:
    try:
        data = content.result()
        sha256 = hashlib.sha256(data).hexdigest()
        size = examine(data, sha256)
    except (NotFound, SourceUnreadable, ImageRejected) as error:
        refusal = refuse(error)
        return RejectedFile(file, refusal.reason, refusal.message)
    return UsableImage(file, sha256, size.width, size.height)
