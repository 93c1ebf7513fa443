"""Computes features: the shards that are missing of the cache, and what goes into one.

Array axes: N row, D feature, H height, W width, C channel.
"""

import math
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np

from ray_cluster.train.dataset_images import decode_unchanged
from ray_cluster.train.features import FeatureIndex, FeatureKey, FeaturesND, encode_shard, shard_sha256
from ray_cluster.train.read_ahead import Wanted, read_ahead
from ray_cluster.vision import images
from ray_cluster.vision.engines import Engine, load_engine
from services.contracts import names
from services.contracts.datasets import ImageRecord
from services.contracts.errors import NotFound
from services.contracts.ids import TrunkId
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore

SHARD_ROWS = 256
"""Rows of a full shard: 1.3 MB at 1280 features, a few seconds of one core."""
MIN_SHARD_ROWS = 32
"""Work is not divided into smaller shards than this for the sake of idle cores."""
TURNS = 4
"""Shards that each core gets where they are not too small: who begins later than the others does fewer."""


@dataclass(frozen=True, slots=True)
class FeatureWork:
    """A shard to compute: images, and which views of each."""

    images: list[tuple[ImageRecord, list[int]]]


def plan(
    index: FeatureIndex, images_and_views: Iterable[tuple[ImageRecord, Sequence[int]]], parallelism: int
) -> list[FeatureWork]:
    """Shards for all rows that are not cached, in the images' order, of equal size.

    There are as many for each of `parallelism` tasks that run at a time, so that all end together, and several, since
    their processes do not begin together. All views of an image go into one shard, so it is read and decoded once.
    """
    todo: list[tuple[ImageRecord, list[int]]] = []
    for image, views in images_and_views:
        missing = [view for view in views if index.missing([FeatureKey(image.sha256, view)])]
        if missing:
            todo.append((image, missing))
    row_count = sum(len(views) for _, views in todo)
    works = [FeatureWork([]) for _ in range(shard_count(row_count, parallelism))]
    row = 0
    for image, views in todo:
        works[row * len(works) // row_count].images.append((image, views))
        row += len(views)
    return [work for work in works if work.images]


def shard_count(row_count: int, parallelism: int) -> int:
    """Into how many shards so many rows go, as many for each core where there are enough; none at all where there are
    no rows."""
    least = math.ceil(row_count / SHARD_ROWS)
    turns = max(math.ceil(least / parallelism), TURNS)
    enough = min(turns * parallelism, row_count // MIN_SHARD_ROWS)
    return max(least, enough - enough % parallelism if enough > parallelism else enough)


class FeatureShard:
    """A shard being computed: images go in, and are run in the batches that the engine wants; `save` stores it."""

    def __init__(self, store: ObjectStore, trunk: TrunkManifest, engine_name: str) -> None:
        """Loads the trunk into the engine of that name, unless this process has it."""
        self._store = store
        self._trunk = trunk
        self._engine = _engine(store, trunk, engine_name)
        self._keys: dict[FeatureKey, None] = {}
        self._rows: list[FeaturesND] = []
        self._batch: list[images.ImageHWC] = []

    def add(self, key: FeatureKey, image_HWC: images.ImageHWC) -> None:
        """A row, of these pixels; nothing where the shard has it."""
        if key in self._keys:
            return
        self._keys[key] = None
        self._batch.append(image_HWC)
        if len(self._batch) == self._engine.batch_size:
            self._run_batch()

    def save(self) -> None:
        """Idempotent: the same rows are the same object. One without rows is none."""
        if self._batch:
            self._run_batch()
        if not self._keys:
            return
        keys = list(self._keys)
        features_ND = np.concatenate(self._rows).astype(self._trunk.feature_dtype, copy=False)
        computed_by = f"{self._engine.name}-{self._engine.version}"
        shard = names.feature_shard(self._trunk.trunk_id, shard_sha256(keys, computed_by))
        self._store.put(shard, encode_shard(keys, features_ND, computed_by))

    def _run_batch(self) -> None:
        self._rows.append(self._engine.features(np.stack(self._batch)))
        self._batch.clear()


def compute_shard(
    store: ObjectStore, source: ObjectStore, trunk: TrunkManifest, engine_name: str, work: FeatureWork
) -> None:
    """Runs the trunk over a shard's images, by the engine of that name, and stores the features. Idempotent.

    Raises `CallerError` naming the file when an image is no longer what preflight read.
    """
    shard = FeatureShard(store, trunk, engine_name)
    files = read_ahead(source.get, [Wanted(image.path, image.size_bytes) for image, _ in work.images])
    for (image, views), file in zip(work.images, files, strict=True):
        image_HWC = decode_unchanged(image, _content(file), trunk.image_size)
        for view in views:
            shard.add(FeatureKey(image.sha256, view), images.view(image_HWC, view))
    shard.save()


def _content(file: Future[bytes]) -> bytes | None:
    try:
        return file.result()
    except NotFound:
        return None


_MAX_ENGINES = 2
"""A process seldom goes back to an earlier job's trunks, and each holds its weights; a job has two at most."""
_engines: dict[tuple[str, TrunkId, str], Engine] = {}
_engines_lock = threading.Lock()


def _engine(store: ObjectStore, trunk: TrunkManifest, name: str) -> Engine:
    """The trunk on this process's one thread; loaded once per process, which computes many shards."""
    with _engines_lock:
        key = (store.uri, trunk.trunk_id, name)
        if key not in _engines:
            if len(_engines) == _MAX_ENGINES:
                del _engines[next(iter(_engines))]
            _engines[key] = load_engine(store, trunk, name, threads=1)
        return _engines[key]
