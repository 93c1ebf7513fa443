"""Finding trunks, against a folder. A trunk here is a real one, of random weights."""

import hashlib
from pathlib import Path

import pytest

from ray_cluster.vision import trunks, weight_files
from ray_cluster.vision.backbones import build_network
from ray_cluster.vision.trunk_builder import build_trunk
from services.contracts import names
from services.contracts.backbones import BackboneName
from services.contracts.errors import WeightsUnusable
from services.contracts.jobs import WeightsUri
from services.contracts.models import TrunkRecipe
from services.runtime.objects import ObjectStore, open_store

TINY = BackboneName.REKINDLE_TINY
BUNDLED = TrunkRecipe(backbone=TINY, weights="bundled", image_size=64)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "bucket").as_uri())


@pytest.fixture
def weights(tmp_path: Path) -> WeightsUri:
    path = tmp_path / "tiny.weights.h5"
    build_network(TINY, 32, 3).save_weights(path)
    return WeightsUri(uri=path.as_uri())


def recipe_of(weights: WeightsUri) -> TrunkRecipe:
    return TrunkRecipe(backbone=TINY, weights=weights, image_size=32)


def test_nothing_is_found_in_an_empty_store(store: ObjectStore) -> None:
    assert trunks.find_trunk(store, BUNDLED) is None


def test_a_file_is_named_by_its_hash(store: ObjectStore, weights: WeightsUri, tmp_path: Path) -> None:
    resolved = trunks.resolve_recipe(recipe_of(weights))
    assert isinstance(resolved.weights, WeightsUri)
    assert resolved.weights.sha256 == hashlib.sha256((tmp_path / "tiny.weights.h5").read_bytes()).hexdigest()
    trunk = build_trunk(store, recipe_of(weights))
    assert trunk.weights == resolved.weights
    assert trunks.find_trunk(store, resolved) == trunk
    assert trunks.find_trunk(store, BUNDLED) is None


def test_a_file_that_was_replaced_gives_another_trunk(store: ObjectStore, weights: WeightsUri, tmp_path: Path) -> None:
    first = build_trunk(store, recipe_of(weights))
    build_network(TINY, 32, 3).save_weights(tmp_path / "tiny.weights.h5")
    assert trunks.find_trunk(store, recipe_of(weights)) is None
    assert build_trunk(store, recipe_of(weights)).trunk_id != first.trunk_id


def test_the_same_weights_elsewhere_are_the_same_trunk(store: ObjectStore, weights: WeightsUri, tmp_path: Path) -> None:
    first = build_trunk(store, recipe_of(weights))
    copy = tmp_path / "copy.h5"  # named like the legacy format: the content decides
    copy.write_bytes((tmp_path / "tiny.weights.h5").read_bytes())
    assert build_trunk(store, recipe_of(WeightsUri(uri=copy.as_uri()))) == first


def test_a_trunk_whose_objects_were_lost_is_built_again_byte_for_byte(store: ObjectStore, weights: WeightsUri) -> None:
    trunk = build_trunk(store, recipe_of(weights))
    store.delete([trunk.artefacts["litert"].key])
    assert trunks.find_trunk(store, recipe_of(weights)) is None
    assert trunks.read_trunk(store, trunk.trunk_id) is None
    assert build_trunk(store, recipe_of(weights)) == trunk
    assert trunks.find_trunk(store, recipe_of(weights)) == trunk


def test_a_builder_that_died_before_its_manifest_left_nothing_visible(store: ObjectStore, weights: WeightsUri) -> None:
    trunk = build_trunk(store, recipe_of(weights))
    recipe_key = names.trunk_source(trunks.resolve_recipe(recipe_of(weights)).sha256())
    store.delete([names.trunk_manifest(trunk.trunk_id), recipe_key])
    assert trunks.find_trunk(store, recipe_of(weights)) is None
    assert build_trunk(store, recipe_of(weights)) == trunk


def test_bundled_weights_of_another_release_are_not_reused(store: ObjectStore) -> None:
    trunk = build_trunk(store, BUNDLED)
    assert trunk.weights_sha256 == weight_files.hash_file(weight_files.BUNDLED_WEIGHTS)
    earlier = trunk.model_copy(update={"weights_sha256": "0" * 64})
    store.put(names.trunk_source(BUNDLED.sha256()), earlier.model_dump_json().encode())
    assert trunks.find_trunk(store, BUNDLED) is None
    assert build_trunk(store, BUNDLED) == trunk
    assert trunks.find_trunk(store, BUNDLED) == trunk


def test_a_wrong_sha256_is_refused_and_nothing_is_written(
    store: ObjectStore, weights: WeightsUri, tmp_path: Path
) -> None:
    wrong = weights.model_copy(update={"sha256": "0" * 64})
    with pytest.raises(WeightsUnusable, match="have sha256"):
        build_trunk(store, recipe_of(wrong))
    assert not (tmp_path / "bucket").exists()


@pytest.mark.parametrize("name", ["missing.h5", "weights.bin", "missing/weights.h5"])
def test_weights_that_are_not_there_are_refused(store: ObjectStore, tmp_path: Path, name: str) -> None:
    uri = (tmp_path / name).as_uri()
    with pytest.raises(WeightsUnusable, match=name):
        trunks.resolve_recipe(recipe_of(WeightsUri(uri=uri)))
    with pytest.raises(WeightsUnusable, match=name):
        build_trunk(store, recipe_of(WeightsUri(uri=uri, sha256="0" * 64)))
