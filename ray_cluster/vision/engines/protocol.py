"""What runs a trunk.

Array axes: B batch, H height, W width, C channel, D feature.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt


class Engine(Protocol):
    """A loaded trunk. Safe to call from several threads, one of which computes at a time.

    An image's features are a pure function of its pixels, the trunk, and the engine with its version: never of the
    other images in the batch.
    """

    @property
    def name(self) -> str:
        """The engine's name, e.g. `litert`; see `kinds`."""
        ...

    @property
    def version(self) -> str:
        """Version of the engine's library, and of a GPU its name."""
        ...

    @property
    def feature_dim(self) -> int:
        """D."""
        ...

    @property
    def batch_size(self) -> int:
        """How many images it had best be given at a time; more or fewer give the same features."""
        ...

    def features(self, images_BHWC: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """uint8 RGB [B, size, size, 3] to float32 features [B, D]; B may be 0.

        Raises `ValueError` when the images have another dtype or size.
        """
        ...
