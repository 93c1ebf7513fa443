"""Uploads a stream of any length to S3 in bounded memory."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, Protocol, TypeVar

from services.contracts.errors import CallerError, RekindleError
from services.runtime.objects.s3_client import S3Client, Written
from services.runtime.objects.s3_errors import NoSuchUpload

Result = TypeVar("Result")

MIN_PART_BYTES = 8 * 1024 * 1024
MAX_PARTS = 10_000
_PARTS_PER_SIZE = 2_000
_MAX_DOUBLINGS = 4


class Call(Protocol):
    """Runs one request with retries and error mapping."""

    def __call__(self, operation: Callable[[], Result], /) -> Result: ...


def part_bytes(part_number: int, size_bytes: int | None) -> int:
    """Size of a part (from 1), so that the whole fits into S3's 10,000 parts.

    Where the whole size is not known, parts double every 2,000: 8 to 128 MiB, together 484 GiB.
    """
    if size_bytes is not None:
        return max(MIN_PART_BYTES, -(-size_bytes // MAX_PARTS))
    return MIN_PART_BYTES * 2 ** min((part_number - 1) // _PARTS_PER_SIZE, _MAX_DOUBLINGS)


def read_part(stream: BinaryIO, size_bytes: int) -> bytes:
    """`size_bytes` bytes, fewer only at the stream's end. A stream may return less than it was asked for."""
    pieces: list[bytes] = []
    missing = size_bytes
    while missing and (piece := stream.read(missing)):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def check_size(what: str, size_bytes: int, announced_bytes: int | None) -> None:
    """Raises `CallerError` when a stream was not as long as announced: it was cut off, or is not what was meant."""
    if announced_bytes is not None and size_bytes != announced_bytes:
        raise CallerError(f"{what}: {announced_bytes} bytes were announced and {size_bytes} came: send it again")


@dataclass(frozen=True, slots=True)
class MultipartUpload:
    """One multipart upload. A failure aborts it; a killed process leaves parts that no listing shows.

    A bucket's lifecycle rule `AbortIncompleteMultipartUpload` removes those.
    """

    client: Callable[[], S3Client]
    call: Call
    what: str
    target: dict[str, str]
    """Bucket and Key."""

    def run(self, first: bytes, stream: BinaryIO, announced_bytes: int | None, metadata: dict[str, str]) -> int:
        """Sends `first` and the rest of the stream, then makes the object visible. Returns its size.

        The stream's errors pass through. Raises `NoSuchUpload` when S3 no longer knows the upload at the end, which
        is also what a repeated completion gets after one whose answer was lost.
        """
        created = self.call(lambda: self.client().create_multipart_upload(**self.target, Metadata=metadata))
        upload = {**self.target, "UploadId": created["UploadId"]}
        try:
            parts, size_bytes = self._send(upload, first, stream, announced_bytes)
            check_size(self.what, size_bytes, announced_bytes)
            self.call(lambda: self.client().complete_multipart_upload(**upload, MultipartUpload={"Parts": parts}))
        except NoSuchUpload:
            raise
        except BaseException:
            with suppress(RekindleError):
                self.call(lambda: self.client().abort_multipart_upload(**upload))
            raise
        return size_bytes

    def _send(
        self, upload: dict[str, str], first: bytes, stream: BinaryIO, announced_bytes: int | None
    ) -> tuple[list[dict[str, object]], int]:
        parts: list[dict[str, object]] = []
        size_bytes = 0
        data = first
        while data:
            number = len(parts) + 1
            if number > MAX_PARTS:
                raise CallerError(f"{self.what}: more than {size_bytes} bytes of unknown length: announce the size")
            sent = self._send_part(upload, number, data)
            parts.append({"PartNumber": number, "ETag": sent["ETag"]})
            size_bytes += len(data)
            if announced_bytes is not None and size_bytes > announced_bytes:
                break
            data = read_part(stream, part_bytes(number + 1, announced_bytes))
        return parts, size_bytes

    def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> Written:
        return self.call(lambda: self.client().upload_part(**upload, PartNumber=number, Body=data))
