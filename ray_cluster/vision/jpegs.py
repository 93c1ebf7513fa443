"""JPEGs by libjpeg-turbo (`simplejpeg`): more than twice as fast as Pillow. What it will not read is left to Pillow.

Array axes: H height, W width, C channel (red, green, blue).
"""

import numpy as np
import numpy.typing as npt
import simplejpeg

SIGNATURE = b"\xff\xd8\xff"
LEAST_REDUCTION = 2
"""Reducing by less takes longer than it saves."""


def decode(data: bytes, least_side: int) -> npt.NDArray[np.uint8] | None:
    """The pixels as they are stored, EXIF orientation not applied: uint8 [H, W, 3], 0 to 255.

    Large ones are reduced while they are decoded (fewer frequencies of each block are transformed), each side to
    `least_side` at least.

    For colours and greys; other models (CMYK) are converted in ways that no two decoders agree on.

    None for what is no JPEG, or is damaged.
    """
    if not data.startswith(SIGNATURE):
        return None
    try:
        return simplejpeg.decode_jpeg(
            data, "RGB", min_height=least_side, min_width=least_side, min_factor=LEAST_REDUCTION, strict=True
        )
    except ValueError:
        return None
