"""Running a trained network over images of the dataset, by what serving runs. No TensorFlow.

Array axes: N image, D feature, K class.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from ray_cluster.train.features import FeatureIndex, FeatureKey
from ray_cluster.train.fine_tune_data import decode_record
from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.network_tails import NetworkTail
from services.contracts.datasets import ImageRecord
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore


def run_network(
    store: ObjectStore,
    source: ObjectStore,
    trunk: TrunkManifest,
    index: FeatureIndex | None,
    images: Sequence[ImageRecord],
    flatbuffer: bytes,
) -> npt.NDArray[np.float32]:
    """Probabilities [N, K] of the images, from cached features or, without an index of such, from the pixels."""
    tail = NetworkTail(flatbuffer)
    if index is not None:
        keys = [FeatureKey(image.sha256, 0) for image in images]
        features_ND = index.read(store, keys, trunk.feature_dim, trunk.feature_dtype).astype(np.float32)
        return tail.probabilities(features_ND)
    engine = load_engine(store, trunk)
    rows = (engine.features(decode_record(source, image, trunk.image_size)[np.newaxis]) for image in images)
    return np.concatenate([tail.probabilities(features_1D) for features_1D in rows])
