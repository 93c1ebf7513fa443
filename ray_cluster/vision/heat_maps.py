"""Class maps as people look at them: as shares of the highest value, and laid over the image.

Array axes: H height, W width, C channel (red, green, blue).
"""

import io

import numpy as np
from PIL import Image

from ray_cluster.vision.images import ImageHWC
from ray_cluster.vision.tails import FloatArray

_OPACITY = 0.7
"""Of the highest value; 0 is transparent."""
_COLOURS = {0.0: (255, 255, 0), 0.5: (255, 140, 0), 1.0: (230, 0, 0)}
"""From weak to strong; between them it is interpolated."""
_COMPRESSION = 3
"""zlib's level: twice as fast as Pillow's default, for a few percent more bytes."""


def heat(class_map_HW: FloatArray) -> FloatArray:
    """A class's map as shares of its highest value, float32 0 to 1. What speaks against the class is 0, and so is all
    where nothing speaks for it."""
    positive_HW = np.maximum(class_map_HW, 0)
    highest = positive_HW.max()
    return positive_HW / highest if highest > 0 else positive_HW


def overlay(image_HWC: ImageHWC, heat_HW: FloatArray) -> ImageHWC:
    """The image in greys with the map over all of it, uint8 as the image: yellow to red where the map is high, grey
    where it is 0. So all colour is the map's.

    The map, 0 to 1, may have any size: it is stretched bilinearly.
    """
    height, width = image_HWC.shape[:2]
    stretched = Image.fromarray(heat_HW.astype(np.float32)).resize((width, height), Image.Resampling.BILINEAR)
    strength_HW = np.asarray(stretched)
    levels = list(_COLOURS)
    colour_HWC = np.stack(
        [np.interp(strength_HW, levels, [_COLOURS[level][channel] for level in levels]) for channel in range(3)],
        axis=-1,
    )
    opacity_HWC = _OPACITY * strength_HW[:, :, np.newaxis]
    grey_HWC = np.asarray(Image.fromarray(image_HWC).convert("L"))[:, :, np.newaxis]
    return np.round(grey_HWC * (1 - opacity_HWC) + colour_HWC * opacity_HWC).astype(np.uint8)


def png(image_HWC: ImageHWC) -> bytes:
    """The image as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG", compress_level=_COMPRESSION)
    return stream.getvalue()
