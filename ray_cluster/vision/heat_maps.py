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
_SHARES = np.linspace(0, 1, 256)
_COLOUR_TABLES = [
    np.interp(_SHARES, list(_COLOURS), [colour[channel] for colour in _COLOURS.values()]).round().astype(int).tolist()
    for channel in range(3)
]
_OPACITY_TABLE = (255 * _OPACITY * _SHARES).round().astype(int).tolist()
_COMPRESSION = 1
"""zlib's level: four times as fast as Pillow's default, and on photographs no larger."""


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
    # By Pillow, in 8 bits: a quarter of the time that NumPy takes in floats.
    image = Image.fromarray(image_HWC)
    levels = Image.fromarray(np.round(heat_HW * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    colours = Image.merge("RGB", [levels.point(table) for table in _COLOUR_TABLES])
    return np.asarray(Image.composite(colours, image.convert("L").convert("RGB"), levels.point(_OPACITY_TABLE)))


def png(image_HWC: ImageHWC) -> bytes:
    """The image as a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG", compress_level=_COMPRESSION)
    return stream.getvalue()
