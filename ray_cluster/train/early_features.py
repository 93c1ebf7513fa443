"""Preflight computes features, too, where it can: of an image that it reads for the first time, from one decoding.

It can where the job's trunks are built and their engine is known before it starts, as after the first job on a
backbone. Each image is then fetched once and decoded once. Nothing depends on it: what is missing in the end is
computed by the stage after preflight, and what was computed of a file that is not used is in the cache all the same.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ray_cluster.train.feature_pass import FeatureShard
from ray_cluster.train.features import FeatureIndex, FeatureKey
from ray_cluster.train.inspection import Inspected, inspect_files
from ray_cluster.train.listing import ListedFile
from ray_cluster.vision import images
from services.contracts.base import Sha256
from services.contracts.models import EngineChoice, TrunkManifest
from services.runtime.objects import ObjectStore

PLAIN = 0
"""The view that every job needs of every image."""


class CachedImages:
    """Images whose plain features are in the cache, known by the first eight bytes of their hashes: of two that agree
    in these, one is computed later."""

    def __init__(self, sha256s: Iterable[Sha256]) -> None:
        self._prefixes_N: npt.NDArray[np.uint64] = np.unique(np.fromiter(map(_prefix, sha256s), np.uint64))

    @classmethod
    def of(cls, indexes: Sequence[FeatureIndex]) -> "CachedImages":
        """Those that are in every one of the indexes."""
        first, *others = indexes
        return cls(
            key.sha256 for key in first if key.view == PLAIN and not any(other.missing([key]) for other in others)
        )

    def __contains__(self, sha256: Sha256) -> bool:
        prefix = _prefix(sha256)
        place = int(np.searchsorted(self._prefixes_N, prefix))
        return place < len(self._prefixes_N) and self._prefixes_N[place] == prefix


@dataclass(frozen=True, slots=True)
class EarlyFeatures:
    """What preflight is to compute."""

    trunks: list[TrunkManifest]
    """At least one, all for images of one size; none of them gives pixels."""
    engine: EngineChoice
    cached: CachedImages


def inspect_and_compute(
    store: ObjectStore, source: ObjectStore, files: Sequence[ListedFile], early: EarlyFeatures
) -> list[Inspected]:
    """As `inspect_files`; the features of images that are not cached are, as one shard of each trunk. Idempotent."""
    shards = [FeatureShard(store, trunk, early.engine.engine) for trunk in early.trunks]
    image_size = early.trunks[0].image_size

    def examine(data: bytes, sha256: Sha256) -> images.ImageSize:
        if sha256 in early.cached:
            return images.inspect(data)
        size, image_HWC = images.read(data, image_size)
        for shard in shards:
            shard.add(FeatureKey(sha256, PLAIN), image_HWC)
        return size

    inspected = inspect_files(source, files, examine)
    for shard in shards:
        shard.save()
    return inspected


def _prefix(sha256: Sha256) -> np.uint64:
    return np.uint64(int(sha256[:16], 16))
