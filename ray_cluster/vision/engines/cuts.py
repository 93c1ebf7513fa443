"""Engines of trunks that end before pooling: at a block, or at once.

Array axes: B batch, H height, W width, C channel, D feature.
"""

import numpy as np
import numpy.typing as npt

from ray_cluster.vision.engines.protocol import Engine

_LARGEST = float(np.finfo(np.float16).max)


class HalfPrecisionEngine:
    """Rounds an engine's features to half precision, as the cache keeps them: what was cached and what is computed
    anew are the same. Values beyond half precision's range become the largest there is."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.name = engine.name
        self.version = engine.version
        self.feature_dim = engine.feature_dim
        self.batch_size = engine.batch_size

    def features(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.features`."""
        features_BD = self._engine.features(images_BHWC)
        return np.clip(features_BD, -_LARGEST, _LARGEST).astype(np.float16).astype(np.float32)


class PixelEngine:
    """The trunk that is cut before everything: an image's features are its pixels."""

    name = "pixels"
    version = "1"
    batch_size = 1

    def __init__(self, image_size: int) -> None:
        self._image_shape = (image_size, image_size, 3)
        self.feature_dim = image_size * image_size * 3

    def features(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """See `Engine.features`."""
        if images_BHWC.dtype != np.uint8 or images_BHWC.shape[1:] != self._image_shape:
            raise ValueError(f"images {images_BHWC.dtype} {images_BHWC.shape} are not uint8 {self._image_shape}")
        return images_BHWC.reshape(len(images_BHWC), self.feature_dim).astype(np.float32)
