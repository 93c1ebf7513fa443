"""A dataset's images as training reads them: they must still be what preflight read. Array axes: H, W, C."""

import hashlib

from ray_cluster.vision import images
from services.contracts.datasets import ImageRecord
from services.contracts.errors import CallerError, CorruptObject, ImageRejected


def decode_unchanged(record: ImageRecord, data: bytes | None, image_size: int) -> images.ImageHWC:
    """The pixels of one of a manifest's images, whose file has these bytes now; None for a file that is gone.

    Raises `CallerError` naming the file when it is no longer what preflight read.
    """
    if data is None or hashlib.sha256(data).hexdigest() != record.sha256:
        raise CallerError(
            f"{record.path} changed while the job was running: leave the dataset's files alone, and start again",
            {"path": record.path},
        )
    try:
        return images.decode(data, image_size)
    except ImageRejected as error:  # preflight decoded these very bytes: a bug, or a broken machine
        raise CorruptObject(f"{record.path} decoded in preflight and no longer does: {error}") from error
