"""What the cores could do if nothing but decoding, the trunk and a head ran, in processes without a network."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ray_cluster.vision import images
from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.engines.choice import choose
from services.contracts.models import TrunkManifest
from services.runtime.objects import open_store
from tests.benchmarks.rates import rate_of
from tests.benchmarks.serve.many import CLASSES
from tests.servers.published import random_tail


def predict_rate(bucket: Path, trunk_json: str, files: Sequence[Path]) -> float:
    """From files' bytes to probabilities, one image after the other, in this process."""
    trunk, store = TrunkManifest.model_validate_json(trunk_json), open_store(bucket.as_uri())
    engine = load_engine(store, trunk, choose(store, [trunk]).engine, threads=1)
    tail = random_tail(trunk.feature_dim, CLASSES, 0)
    contents = [file.read_bytes() for file in files]

    def predict(n: int) -> object:
        image_HWC = images.decode(contents[n], trunk.image_size)
        return tail.probabilities(engine.features(image_HWC[np.newaxis]))

    return rate_of(predict, len(files))
