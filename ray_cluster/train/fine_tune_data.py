"""The images that fine-tuning trains on, as features of the trunk's cut: out of the cache, or decoded each time.

Array axes: N image, V view, B batch, D feature, H height, W width, C channel.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ray_cluster.train.dataset_images import decode_unchanged
from ray_cluster.train.features import FeatureIndex, FeatureKey
from ray_cluster.vision import images
from services.contracts.datasets import ImageRecord
from services.contracts.errors import NotFound
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore

_READERS = 8
_MAX_AHEAD = 512
"""Images decoded ahead at most: 75 MB at 224 pixels."""

Places = Sequence[tuple[int, int]]
"""(image, view) of each row of a batch."""


class Examples(Protocol):
    """Images of one split, in the manifest's order."""

    def read(self, places: Places) -> npt.NDArray[np.float32]:
        """Features [B, D] of these images' views. A pure function of its argument."""
        ...

    def expect(self, places: Places) -> None:
        """These will be read soon. Returns at once."""
        ...


class CachedExamples:
    """Activations out of the feature cache, held in memory as the cache keeps them."""

    def __init__(
        self,
        store: ObjectStore,
        index: FeatureIndex,
        trunk: TrunkManifest,
        records: Sequence[ImageRecord],
        views: Sequence[int],
    ) -> None:
        """Reads them all. Raises `CorruptObject`, `NotFound`, `KeyError`."""
        self._features_VND = [
            index.read(
                store, [FeatureKey(each.sha256, view) for each in records], trunk.feature_dim, trunk.feature_dtype
            )
            for view in views
        ]
        self._place_of = {view: place for place, view in enumerate(views)}

    def read(self, places: Places) -> npt.NDArray[np.float32]:
        """See `Examples.read`."""
        rows = [self._features_VND[self._place_of[view]][image] for image, view in places]
        return np.stack(rows).astype(np.float32)

    def expect(self, places: Places) -> None:
        """Nothing: they are in memory."""


class DecodedExamples:
    """Pixels, read from the dataset and decoded whenever they are needed, on a few threads and a little ahead."""

    def __init__(self, source: ObjectStore, records: Sequence[ImageRecord], image_size: int) -> None:
        self._source = source
        self._records = records
        self._image_size = image_size
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="decode")
        self._ahead: dict[tuple[int, int], Future[images.ImageHWC]] = {}

    def read(self, places: Places) -> npt.NDArray[np.float32]:
        """See `Examples.read`. Raises `CallerError` naming a file that is no longer what preflight read."""
        futures = [self._ahead.pop(place, None) or self._submit(place) for place in places]
        images_BHWC = np.stack([future.result() for future in futures])
        return images_BHWC.reshape(len(places), -1).astype(np.float32)

    def expect(self, places: Places) -> None:
        """Begins to decode them."""
        for place in places:
            if place not in self._ahead and len(self._ahead) < _MAX_AHEAD:
                self._ahead[place] = self._submit(place)

    def _submit(self, place: tuple[int, int]) -> Future[images.ImageHWC]:
        image, view = place
        return self._readers.submit(
            lambda: images.view(decode_record(self._source, self._records[image], self._image_size), view)
        )


def decode_record(source: ObjectStore, record: ImageRecord, image_size: int) -> images.ImageHWC:
    """The pixels of one of a manifest's images.

    Raises `CallerError` naming the file when it is no longer what preflight read.
    """
    try:
        data = source.get(record.path)
    except NotFound:
        data = None
    return decode_unchanged(record, data, image_size)
