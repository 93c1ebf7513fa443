"""The feature cache: every row once, found again, and never believed when broken."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_cluster.train import feature_pass, features
from ray_cluster.train.feature_pass import FeatureWork
from ray_cluster.train.features import FeatureIndex, FeatureKey
from ray_cluster.vision import images
from services.contracts import names
from services.contracts.datasets import ImageRecord, Split
from services.contracts.ids import TrunkId
from services.runtime.objects import ObjectStore, open_store
from tests.servers.published import made_up_trunk

TRUNK = TrunkId("f" * 64)
DIM = 5
ENGINE = "litert-2.3.0"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    (tmp_path / "bucket").mkdir()
    return open_store((tmp_path / "bucket").as_uri())


def key(index: int, view: int = 0) -> FeatureKey:
    return FeatureKey(hashlib.sha256(str(index).encode()).hexdigest(), view)


def row(wanted: FeatureKey) -> np.ndarray:
    return np.random.default_rng([int(wanted.sha256[:8], 16), wanted.view]).random(DIM, np.float32)


def put_shard(store: ObjectStore, keys: Sequence[FeatureKey]) -> str:
    name = names.feature_shard(TRUNK, features.shard_sha256(keys, ENGINE))
    store.put(name, features.encode_shard(keys, np.stack([row(each) for each in keys]), ENGINE))
    return name


def image(index: int) -> ImageRecord:
    return ImageRecord(
        path=f"a/{index:05}.png",
        sha256=key(index).sha256,
        size_bytes=1,
        width=1,
        height=1,
        label="a",
        split=Split.TRAIN,
    )


def test_rows_come_back_in_the_order_asked_for(store: ObjectStore) -> None:
    put_shard(store, [key(1), key(1, 1), key(2)])
    put_shard(store, [key(3), key(3, 1)])
    index = FeatureIndex.load(store, TRUNK, ENGINE)
    wanted = [key(3, 1), key(1), key(2), key(1, 1), key(1)]
    assert np.array_equal(index.read(store, wanted, DIM), np.stack([row(each) for each in wanted]))
    assert index.missing([key(2), key(2, 1), key(9)]) == [key(2, 1), key(9)]


def test_no_shards_no_rows(store: ObjectStore) -> None:
    assert len(FeatureIndex.load(store, TRUNK, ENGINE)) == 0


def test_another_trunks_features_are_not_mixed_in(store: ObjectStore) -> None:
    put_shard(store, [key(1)])
    assert len(FeatureIndex.load(store, TrunkId("e" * 64), ENGINE)) == 0


@pytest.mark.parametrize("engine", ["litert-0.1", "onnx-1.0"])
def test_another_engines_features_are_not_mixed_in(store: ObjectStore, engine: str) -> None:
    put_shard(store, [key(1)])
    keys = [key(1), key(2)]
    others = names.feature_shard(TRUNK, features.shard_sha256(keys, engine))
    store.put(others, features.encode_shard(keys, np.stack([row(each) + 1 for each in keys]), engine))
    index = FeatureIndex.load(store, TRUNK, ENGINE)
    assert index.missing(keys) == [key(2)]
    assert np.array_equal(index.read(store, [key(1)], DIM), row(key(1))[np.newaxis])
    put_shard(store, keys)
    assert FeatureIndex.load(store, TRUNK, ENGINE).missing(keys) == []
    assert store.head(others) is not None


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-3], lambda data: data[:20], lambda data: b"", lambda data: b"x" * 500]
)
def test_a_broken_shard_counts_as_missing(store: ObjectStore, damage: object) -> None:
    assert callable(damage)
    whole, broken = put_shard(store, [key(1)]), put_shard(store, [key(2)])
    assert whole != broken
    store.put(broken, damage(store.get(broken)))
    assert FeatureIndex.load(store, TRUNK, ENGINE).missing([key(1), key(2)]) == [key(2)]


def test_a_shard_with_a_long_header_is_read(store: ObjectStore) -> None:
    from safetensors.numpy import load, save

    name = put_shard(store, [key(1), key(2)])
    store.put(name, save(load(store.get(name)), {"note": "n" * 5000, "engine": ENGINE}))
    assert FeatureIndex.load(store, TRUNK, ENGINE).missing([key(1), key(2)]) == []


@given(
    count=st.integers(0, 700),
    views=st.sampled_from([(0,), (0, 1)]),
    cached=st.sets(st.integers(0, 700)),
    parallelism=st.integers(1, 40),
)
def test_the_plan_has_every_missing_row_once(
    count: int, views: tuple[int, ...], cached: set[int], parallelism: int
) -> None:
    index = FeatureIndex({key(each): features._Row("shard", 0) for each in cached})
    works = feature_pass.plan(index, [(image(each), views) for each in range(count)], parallelism)
    planned = [(record.path, view) for work in works for record, todo in work.images for view in todo]
    assert planned == [
        (image(each).path, view) for each in range(count) for view in views if view != 0 or each not in cached
    ]
    sizes = [sum(len(todo) for _, todo in work.images) for work in works]
    assert all(size < feature_pass.SHARD_ROWS + len(views) for size in sizes)
    assert not sizes or max(sizes) - min(sizes) <= 2 * len(views)


@pytest.mark.parametrize(
    ("rows", "parallelism", "shards"),
    [
        (1000, 2, 8),
        (500, 2, 8),
        (100, 2, 2),
        (2000, 2, 8),
        (3000, 2, 12),
        (2000, 16, 48),
        (100, 16, 3),
        (20, 16, 1),
        (127, 1, 3),
        (257, 1, 4),
        (0, 2, 0),
    ],
)
def test_every_core_gets_several_shards_unless_they_would_be_tiny(rows: int, parallelism: int, shards: int) -> None:
    works = feature_pass.plan(FeatureIndex({}), [(image(each), (0,)) for each in range(rows)], parallelism)
    assert len(works) == shards


class MeanColour:
    """An engine that wants four images at a time."""

    name, version, feature_dim, batch_size = "mean", "1", 3, 4

    def __init__(self) -> None:
        self.batches: list[int] = []

    def features(self, images_BHWC: np.ndarray) -> np.ndarray:
        self.batches.append(len(images_BHWC))
        return images_BHWC.mean(axis=(1, 2)).astype(np.float32)


def test_a_shard_is_computed_in_the_batches_that_its_engine_wants(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, trunk, records = open_store(tmp_path.as_uri()), made_up_trunk(3, image_size=8), list[ImageRecord]()
    for index in range(3):
        encoded = picture((40 * index, 80, 200))
        source.put(f"a/{index:05}.png", encoded)
        records.append(image(index).model_copy(update={"sha256": hashlib.sha256(encoded).hexdigest()}))
    engine = MeanColour()
    monkeypatch.setattr(feature_pass, "load_engine", lambda *_, **__: engine)
    work = FeatureWork([(record, [0, 1]) for record in records])
    feature_pass.compute_shard(store, source, trunk, "mean", work)
    assert engine.batches == [4, 2]
    index = FeatureIndex.load(store, trunk.trunk_id, "mean-1")
    for record in records:
        whole_HWC = images.decode(source.get(record.path), 8)
        for view in (0, 1):
            expected_BD = engine.features(images.view(whole_HWC, view)[np.newaxis])
            assert np.array_equal(index.read(store, [FeatureKey(record.sha256, view)], 3), expected_BD)


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (12, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_shards_name_does_not_depend_on_the_order_of_its_rows() -> None:
    keys = [key(1), key(2, 1), key(2)]
    assert features.shard_sha256(keys, ENGINE) == features.shard_sha256(keys[::-1], ENGINE)
    assert features.shard_sha256(keys, ENGINE) != features.shard_sha256(keys[:2], ENGINE)
