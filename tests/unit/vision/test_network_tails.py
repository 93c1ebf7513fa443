"""Tails that are networks, on a real trunk that is cut below its last block."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.engines.cuts import HalfPrecisionEngine, PixelEngine
from ray_cluster.vision.network_tails import NetworkTail, TrainedNetwork
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.trunk_builder import build_trunk
from ray_cluster.vision.trunks import find_trunk
from ray_cluster.vision.uppers import encode, export_tail, load_upper
from services.contracts.backbones import BackboneName
from services.contracts.errors import CorruptObject
from services.contracts.models import TrunkManifest, TrunkRecipe
from services.runtime.objects import ObjectStore, open_store

RECIPE = TrunkRecipe(backbone=BackboneName.REKINDLE_TINY, weights="bundled", image_size=64, cut="top_blocks:1")
CLASSES = 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    return open_store(tmp_path_factory.mktemp("bucket").as_uri())


@pytest.fixture(scope="module")
def trunk(store: ObjectStore) -> TrunkManifest:
    return build_trunk(store, RECIPE)


@pytest.fixture(scope="module")
def network(store: ObjectStore, trunk: TrunkManifest) -> TrainedNetwork:
    kernel_DK = np.random.default_rng(0).normal(size=(128, CLASSES)).astype(np.float32)
    return export_tail(load_upper(store, trunk), Tail(kernel_DK, np.zeros(CLASSES, np.float32)))


@pytest.fixture
def features_BD(store: ObjectStore, trunk: TrunkManifest) -> np.ndarray:
    images_BHWC = np.random.default_rng(1).integers(0, 256, (8, 64, 64, 3), np.uint8)
    return load_engine(store, trunk).features(images_BHWC)


def test_a_cut_trunk_is_found_again_and_is_not_the_pooled_one(store: ObjectStore, trunk: TrunkManifest) -> None:
    assert find_trunk(store, RECIPE) == trunk
    pooled = build_trunk(store, RECIPE.model_copy(update={"cut": "pooled"}))
    assert pooled.trunk_id != trunk.trunk_id
    assert (pooled.upper, pooled.feature_shape, pooled.feature_dtype) == (None, None, "float32")


def test_a_trunk_without_what_lies_above_its_cut_is_built_again(tmp_path: Path) -> None:
    store = open_store(tmp_path.as_uri())
    trunk = build_trunk(store, RECIPE)
    assert trunk.upper is not None
    store.delete([trunk.upper.key])
    assert find_trunk(store, RECIPE) is None
    assert build_trunk(store, RECIPE) == trunk


def test_what_lies_above_the_cut_is_read_as_it_was_written(store: ObjectStore, trunk: TrunkManifest) -> None:
    assert trunk.upper is not None
    assert encode(load_upper(store, trunk)) == store.get(trunk.upper.key)


def test_batch_normalisation_is_frozen(store: ObjectStore, trunk: TrunkManifest) -> None:
    upper = load_upper(store, trunk)
    assert [variable.name for variable in upper.trainable_variables] == ["kernel"]


def test_threads_that_share_a_tail_get_their_own_answers(network: TrainedNetwork, features_BD: np.ndarray) -> None:
    tail = NetworkTail(network.flatbuffer)
    alone = [tail.probabilities(features_BD[row : row + 1]).tobytes() for row in range(8)] * 20
    with ThreadPoolExecutor(8) as threads:
        together = threads.map(lambda place: tail.probabilities(features_BD[place % 8 : place % 8 + 1]), range(160))
    assert [each.tobytes() for each in together] == alone
    assert len(set(alone)) == 8


def test_probabilities_sum_to_one(network: TrainedNetwork, features_BD: np.ndarray) -> None:
    probabilities_BK = NetworkTail(network.flatbuffer).probabilities(features_BD)
    np.testing.assert_allclose(probabilities_BK.sum(axis=1), 1, atol=1e-6)


def test_features_of_another_width_are_refused(network: TrainedNetwork) -> None:
    with pytest.raises(ValueError, match="do not fit"):
        NetworkTail(network.flatbuffer).logits(np.zeros((1, 7), np.float32))


def test_other_bytes_are_refused(store: ObjectStore, trunk: TrunkManifest) -> None:
    for data in (b"", b"no model", store.get(trunk.artefacts["litert"].key)):
        with pytest.raises(CorruptObject):
            NetworkTail(data)


def test_the_hash_is_of_the_weights(network: TrainedNetwork) -> None:
    assert replace(network, flatbuffer=b"converted otherwise").sha256() == network.sha256()
    changed = {**network.weights, "head.bias": np.ones(CLASSES, np.float32)}
    assert replace(network, weights=changed).sha256() != network.sha256()


class Large:
    """An engine with features that half precision cannot hold."""

    name, version, feature_dim, batch_size = "large", "1", 3, 1

    def features(self, images_BHWC: np.ndarray) -> np.ndarray:
        return np.tile(np.array([1e6, -1e6, 1 / 3], np.float32), (len(images_BHWC), 1))


def test_rounded_features_survive_the_cache() -> None:
    features_BD = HalfPrecisionEngine(Large()).features(np.zeros((2, 4, 4, 3), np.uint8))
    assert np.isfinite(features_BD).all()
    assert features_BD[0, 2] == pytest.approx(1 / 3, rel=1e-3)
    assert features_BD.astype(np.float16).astype(np.float32).tobytes() == features_BD.tobytes()


def test_the_input_cut_gives_the_pixels() -> None:
    images_BHWC = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), np.uint8)
    engine = PixelEngine(4)
    assert (engine.features(images_BHWC).reshape(images_BHWC.shape) == images_BHWC).all()
    with pytest.raises(ValueError, match="are not uint8"):
        engine.features(images_BHWC.astype(np.float32))  # pyright: ignore[reportArgumentType]
