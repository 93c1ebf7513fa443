"""The feature cache: what the trunk makes of each image, computed once per image, ever.

A shard is a safetensors object with `features` [N, D] in the trunk's `feature_dtype`, `sha256` uint8 [N, 32] (of the
image's bytes) and `view` uint8 [N], and the engine that computed it in its header. Its name is the SHA-256 of the
engine and the sorted (sha256, view) pairs, so computing it twice writes the same object twice. The index of the cache
is the shards themselves: their headers and key tensors are read by ranges, without the features. Shards of another
engine than the job's, or of another version of it, count as absent: a job's features are all from one.

Pooled features stay float32: half of it would save 2.5 KB per image beside images of 20 KB and more, and a model would
be served other features than it was trained on. Activations at a cut are larger; engines round them to half precision
themselves, so serving sees the same.

Array axes: N row, D feature, V view.
"""

import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from services.contracts import names
from services.contracts.base import Sha256
from services.contracts.errors import CorruptObject, NotFound
from services.contracts.ids import TrunkId
from services.runtime.objects import ObjectInfo, ObjectStore

_READERS = 16
"""Of shards: an index of 100,000 images is 400 of them, and two small requests each."""
_HEADER_GUESS_BYTES = 2048
_HEADER_LENGTH_BYTES = 8
_ENGINE = "engine"
"""In a shard's metadata."""

FeaturesND = npt.NDArray[np.floating]
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FeatureKey:
    """One row of the cache."""

    sha256: Sha256
    view: int


@dataclass(frozen=True, slots=True)
class _Row:
    shard_key: str
    row: int


# --- the shard's form ---


def shard_sha256(keys: Iterable[FeatureKey], engine: str) -> str:
    """The shard's name, whatever the order of its rows."""
    digest = hashlib.sha256(f"{engine}\n".encode())
    for key in sorted(keys, key=lambda key: (key.sha256, key.view)):
        digest.update(f"{key.sha256}:{key.view}\n".encode())
    return digest.hexdigest()


def encode_shard(keys: Sequence[FeatureKey], features_ND: FeaturesND, engine: str) -> bytes:
    """The shard's bytes; row n of the features belongs to `keys[n]`."""
    hashes_N32 = np.frombuffer(b"".join(bytes.fromhex(key.sha256) for key in keys), np.uint8).reshape(-1, 32)
    views_N = np.array([key.view for key in keys], np.uint8)
    tensors = {"features": np.ascontiguousarray(features_ND), "sha256": hashes_N32, "view": views_N}
    return save(tensors, {_ENGINE: engine})


def read_shard_keys(store: ObjectStore, info: ObjectInfo, engine: str) -> list[FeatureKey]:
    """The keys of a shard's rows, in order, without its features; none where another engine computed it.

    Raises `CorruptObject`, `NotFound`.
    """
    head = store.get_range(info.key, 0, _HEADER_GUESS_BYTES)
    header_size = int.from_bytes(head[:_HEADER_LENGTH_BYTES], "little")
    data_start = _HEADER_LENGTH_BYTES + header_size
    if data_start > info.size_bytes:
        raise CorruptObject(f"feature shard {info.key} is cut short")
    if data_start > len(head):
        head = store.get_range(info.key, 0, data_start)
    try:
        header = json.loads(head[_HEADER_LENGTH_BYTES:data_start])
        computed_by = header.get("__metadata__", {}).get(_ENGINE)
        ends = [header[name]["data_offsets"][1] for name in ("features", "sha256", "view")]
        starts = [header[name]["data_offsets"][0] for name in ("sha256", "view")]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CorruptObject(f"feature shard {info.key} has a broken header: {error}") from error
    if data_start + max(ends) != info.size_bytes:
        raise CorruptObject(f"feature shard {info.key} has {info.size_bytes} bytes, not {data_start + max(ends)}")
    if computed_by != engine:
        return []
    first, end = min(starts), max(ends[1:])
    keys = store.get_range(info.key, data_start + first, end - first)
    hashes = keys[starts[0] - first : ends[1] - first]
    views = keys[starts[1] - first : ends[2] - first]
    return [FeatureKey(hashes[32 * row : 32 * row + 32].hex(), view) for row, view in enumerate(views)]


# --- the index ---


class FeatureIndex:
    """Where each cached row is. A snapshot: load a new one after shards were added."""

    def __init__(self, rows: dict[FeatureKey, _Row]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[FeatureKey]:
        return iter(self._rows)

    @classmethod
    def load(cls, store: ObjectStore, trunk_id: TrunkId, engine: str) -> "FeatureIndex":
        """Reads the keys of every shard of this engine (`engine_id`). A shard that is broken or goes away meanwhile
        counts as absent."""

        def keys_of(info: ObjectInfo) -> list[FeatureKey]:
            try:
                return read_shard_keys(store, info, engine)
            except (CorruptObject, NotFound) as error:
                _log.warning("%s; its features are computed again", error)
                return []

        shards = [info for info in store.list(names.features_prefix(trunk_id)) if info.key.endswith(".safetensors")]
        rows: dict[FeatureKey, _Row] = {}
        with ThreadPoolExecutor(_READERS) as readers:
            for info, keys in zip(shards, readers.map(keys_of, shards), strict=True):
                for row, key in enumerate(keys):
                    rows.setdefault(key, _Row(info.key, row))
        return cls(rows)

    def missing(self, keys: Iterable[FeatureKey]) -> list[FeatureKey]:
        """Those of the keys that are not cached, in their order."""
        return [key for key in keys if key not in self._rows]

    def read(
        self, store: ObjectStore, keys: Sequence[FeatureKey], feature_dim: int, dtype: str = "float32"
    ) -> FeaturesND:
        """The features of these keys, row by row, [N, D] in `dtype`, the trunk's `feature_dtype`.

        Raises `CorruptObject`, `NotFound`, `KeyError`.
        """
        wanted: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for position, key in enumerate(keys):
            row = self._rows[key]
            wanted[row.shard_key].append((position, row.row))
        features_ND = np.empty((len(keys), feature_dim), dtype)

        def fill(shard_key: str) -> None:
            positions, rows = zip(*wanted[shard_key], strict=True)
            features_ND[list(positions)] = _read_features(store, shard_key, feature_dim, dtype)[list(rows)]

        with ThreadPoolExecutor(_READERS) as readers:
            for _ in readers.map(fill, wanted):
                pass
        return features_ND


def _read_features(store: ObjectStore, shard_key: str, feature_dim: int, dtype: str) -> FeaturesND:
    try:
        features_ND = load(store.get(shard_key))["features"]
    except (SafetensorError, KeyError) as error:
        raise CorruptObject(f"feature shard {shard_key} cannot be read: {error}") from error
    if features_ND.ndim != 2 or features_ND.shape[1] != feature_dim or features_ND.dtype != dtype:
        raise CorruptObject(f"feature shard {shard_key} has {features_ND.dtype} {features_ND.shape} features")
    return features_ND
