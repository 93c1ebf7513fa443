"""Preflight computes features of what it reads."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ray_cluster.train import feature_pass
from ray_cluster.train.early_features import CachedImages, EarlyFeatures, inspect_and_compute
from ray_cluster.train.features import FeatureIndex, FeatureKey, encode_shard
from ray_cluster.train.inspection import inspect_files
from ray_cluster.train.listing import Listing, read_listing
from ray_cluster.vision import images
from services.contracts import names
from services.contracts.models import EngineChoice, TrunkManifest
from services.runtime.objects import ObjectStore, open_store
from tests.servers.published import made_up_trunk

TRUNK = made_up_trunk(3, image_size=8)
CUT = TRUNK.model_copy(update={"trunk_id": names.TrunkId("c" * 64)})
ENGINE = EngineChoice(engine="mean", device="d")


class MeanColour:
    """An engine that wants two images at a time."""

    name, version, feature_dim, batch_size = "mean", "1", 3, 2

    def features(self, images_BHWC: np.ndarray) -> np.ndarray:
        return images_BHWC.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(feature_pass, "load_engine", lambda *_, **__: MeanColour())
    monkeypatch.setattr(feature_pass, "_engines", {})
    (tmp_path / "bucket").mkdir()
    return open_store((tmp_path / "bucket").as_uri())


@pytest.fixture
def source(tmp_path: Path) -> ObjectStore:
    """Five images, two of them the same, one turned by its EXIF, and two files that are none."""
    (tmp_path / "source").mkdir()
    source = open_store((tmp_path / "source").as_uri())
    for number, level in enumerate([10, 90, 90, 170, 250]):
        buffer = io.BytesIO()
        picture = Image.new("RGB", (30, 20), (level, 80, 200))
        exif = picture.getexif()
        exif[0x0112] = 6 if number == 4 else 1
        picture.save(buffer, "PNG", exif=exif)
        source.put(f"train/a/{number}.png", buffer.getvalue())
    source.put("train/a/broken.png", source.get("train/a/0.png")[:60])
    source.put("train/b/notes.txt", b"no image")
    return source


def listed(source: ObjectStore) -> Listing:
    return read_listing(source.list(""))


def early(store: ObjectStore, *trunks: TrunkManifest) -> EarlyFeatures:
    indexes = [FeatureIndex.load(store, trunk.trunk_id, "mean-1") for trunk in trunks]
    return EarlyFeatures(list(trunks), ENGINE, CachedImages.of(indexes))


def test_it_finds_what_an_inspection_finds_and_keeps_the_features(store: ObjectStore, source: ObjectStore) -> None:
    files = listed(source).files
    inspected = inspect_and_compute(store, source, files, early(store, TRUNK, CUT))
    assert inspected == inspect_files(source, files)
    contents = [source.get(f"train/a/{number}.png") for number in range(5)]
    keys = [FeatureKey(hashlib.sha256(data).hexdigest(), 0) for data in contents]
    for trunk in (TRUNK, CUT):
        index = FeatureIndex.load(store, trunk.trunk_id, "mean-1")
        assert len(index) == 4, "two files are the same image"
        expected = [images.decode(data, 8).mean(axis=(0, 1)) for data in contents]
        np.testing.assert_array_equal(index.read(store, keys, 3), np.array(expected, np.float32))


def test_what_is_cached_is_not_computed_again(
    store: ObjectStore, source: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = listed(source).files
    inspect_and_compute(store, source, files, early(store, TRUNK))
    before = [info.key for info in store.list("features/")]
    decoded: list[bytes] = []
    read = images.read
    monkeypatch.setattr(images, "read", lambda data, size: decoded.append(data) or read(data, size))
    assert inspect_and_compute(store, source, files, early(store, TRUNK)) == inspect_files(source, files)
    assert decoded == [source.get("train/a/broken.png")]
    assert [info.key for info in store.list("features/")] == before


def test_an_image_counts_as_cached_where_every_trunk_has_it(store: ObjectStore, source: ObjectStore) -> None:
    files = listed(source).files
    inspect_and_compute(store, source, files, early(store, TRUNK))
    inspect_and_compute(store, source, files, early(store, TRUNK, CUT))
    assert len(FeatureIndex.load(store, CUT.trunk_id, "mean-1")) == 4


def test_views_of_an_image_do_not_make_it_cached(store: ObjectStore) -> None:
    key = FeatureKey("ab" * 32, 1)
    store.put(
        names.feature_shard(TRUNK.trunk_id, "d" * 64), encode_shard([key], np.zeros((1, 3), np.float32), "mean-1")
    )
    assert key.sha256 not in early(store, TRUNK).cached


@given(st.sets(st.binary(min_size=32, max_size=32)), st.binary(min_size=32, max_size=32))
def test_cached_images_are_those_that_were_named(hashes: set[bytes], other: bytes) -> None:
    cached = CachedImages(each.hex() for each in hashes)
    assert all(each.hex() in cached for each in hashes)
    assert (other.hex() in cached) == (other[:8] in {each[:8] for each in hashes})
