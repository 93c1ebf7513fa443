"""A version as one network, of trunks with and without the pretrained network's weights beside them."""

from pathlib import Path

import numpy as np
import pytest

from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.trunk_builder import build_trunk
from ray_cluster.vision.whole import load_version
from services.contracts.backbones import BackboneName
from services.contracts.errors import WeightsUnusable
from services.contracts.models import ModelManifest, TrunkRecipe
from services.runtime.objects import ObjectStore, open_store
from tests.servers.training import make_manifest

BUNDLED = TrunkRecipe(backbone=BackboneName.REKINDLE_TINY, weights="bundled", image_size=64)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "bucket").as_uri())


@pytest.fixture
def pretrained(store: ObjectStore) -> ModelManifest:
    """The pretrained classifier as a version."""
    trunk = build_trunk(store, BUNDLED)
    assert trunk.top is not None
    return make_manifest(1).model_copy(update={"trunk": trunk, "tail": trunk.top})


def of_an_earlier_release(model: ModelManifest, **changed: str) -> ModelManifest:
    return model.model_copy(update={"trunk": model.trunk.model_copy(update={"network": None, **changed})})


def test_a_trunk_of_an_earlier_release_gives_the_same_network(store: ObjectStore, pretrained: ModelManifest) -> None:
    images_BHWC = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    networks = [load_version(store, model) for model in (pretrained, of_an_earlier_release(pretrained))]
    new_BK, old_BK = (np.asarray(network(images_BHWC, training=False)) for network in networks)
    assert new_BK.tobytes() == old_BK.tobytes()
    tail = Tail.from_bytes(store.get(pretrained.tail.key))
    served_BK = tail.probabilities(load_engine(store, pretrained.trunk).features(images_BHWC))
    np.testing.assert_allclose(new_BK, served_BK, rtol=0, atol=1e-5)


def test_weights_that_are_no_longer_the_same_are_refused(store: ObjectStore, pretrained: ModelManifest) -> None:
    with pytest.raises(WeightsUnusable, match="no longer those"):
        load_version(store, of_an_earlier_release(pretrained, weights_sha256="0" * 64))
