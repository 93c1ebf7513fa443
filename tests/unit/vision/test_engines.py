"""The engines on one small trunk of random weights. Whether they agree with Keras: `tests/contract/test_backbones.py`.

Array axes: B batch, H height, W width, C channel, D feature.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.vision.backbones import build_network
from ray_cluster.vision.engines import KINDS, Engine, engine_id, load_engine
from ray_cluster.vision.engines.tensorflow_graph import TensorFlowEngine
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.trunk_builder import build_trunk
from ray_cluster.vision.verified import reference
from services.contracts.backbones import BackboneName
from services.contracts.errors import CorruptObject, InternalError
from services.contracts.jobs import WeightsUri
from services.contracts.models import EngineChoice, ObjectRef, TrunkManifest, TrunkRecipe
from services.runtime.objects import ObjectStore, open_store

SIZE = 32
ON_CPU = [name for name, kind in KINDS.items() if not kind.on_gpu]


@dataclass(frozen=True)
class Case:
    store: ObjectStore
    trunk: TrunkManifest

    def engine(self, name: str) -> Engine:
        return load_engine(self.store, self.trunk, name)

    def graph(self, batch_size: int) -> TensorFlowEngine:
        """The engine for GPUs, on the CPU."""
        graph = self.store.get(self.trunk.artefacts["tensorflow"].key)
        return TensorFlowEngine(graph, SIZE, batch_size=batch_size)

    def with_artefact(self, name: str, artefact: ObjectRef) -> TrunkManifest:
        return self.trunk.model_copy(update={"artefacts": {KINDS[name].artefact: artefact}})


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("engines")
    path: Path = folder / "tiny.weights.h5"
    build_network(BackboneName.REKINDLE_TINY, SIZE, 3).save_weights(path)
    store = open_store((folder / "bucket").as_uri())
    recipe = TrunkRecipe(backbone=BackboneName.REKINDLE_TINY, weights=WeightsUri(uri=path.as_uri()), image_size=SIZE)
    return Case(store, build_trunk(store, recipe))


def pictures(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)


@pytest.mark.parametrize("name", ON_CPU)
def test_an_engine_maps_pixels_to_features(case: Case, name: str) -> None:
    engine = case.engine(name)
    assert (engine.name, engine.feature_dim) == (name, 128)
    assert engine_id(EngineChoice(engine=name, device="cpu")) == f"{engine.name}-{engine.version}"
    features_BD = engine.features(pictures(5))
    assert features_BD.shape == (5, 128)
    assert np.isfinite(features_BD).all()
    assert engine.features(pictures(0)).shape == (0, 128)
    assert case.trunk.top is not None
    assert Tail.from_bytes(case.store.get(case.trunk.top.key)).probabilities(features_BD).shape == (5, 3)


@pytest.mark.parametrize("name", ON_CPU)
def test_images_that_do_not_fit_are_refused(case: Case, name: str) -> None:
    engine = case.engine(name)
    for shape, dtype in (((1, 33, SIZE, 3), np.uint8), ((1, SIZE, SIZE, 3), np.float32), ((SIZE, SIZE, 3), np.uint8)):
        with pytest.raises(ValueError, match="do not fit"):
            engine.features(np.zeros(shape, dtype))


def test_batches_that_are_filled_up_change_no_bit(case: Case) -> None:
    whole, engine = pictures(7), case.graph(batch_size=4)
    features_BD = engine.features(whole)
    assert features_BD[6:].tobytes() == engine.features(whole[6:]).tobytes()
    assert features_BD[:4].tobytes() == engine.features(whole[:4]).tobytes()
    np.testing.assert_allclose(features_BD, case.engine("litert").features(whole), rtol=0, atol=1e-4)


def test_no_engine_takes_the_place_of_a_missing_gpu(case: Case) -> None:
    with pytest.raises(InternalError, match="sees no GPU"):
        case.engine("tensorflow_gpu")


def flip(data: bytes) -> bytes:
    """One bit in the middle."""
    changed = bytearray(data)
    changed[len(changed) // 2] ^= 1
    return bytes(changed)


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1]])
@pytest.mark.parametrize("name", ON_CPU)
def test_an_artefact_that_was_changed_is_corrupt(case: Case, name: str, damage: Callable[[bytes], bytes]) -> None:
    whole = case.trunk.artefacts[KINDS[name].artefact]
    case.store.put("damaged", damage(case.store.get(whole.key)))
    with pytest.raises(CorruptObject, match="damaged does not match"):
        load_engine(case.store, case.with_artefact(name, whole.model_copy(update={"key": "damaged"})), name)


@pytest.mark.parametrize("name", ON_CPU)
@pytest.mark.parametrize("junk", [b"", b"junk" * 100])
def test_an_artefact_that_is_no_model_is_corrupt(case: Case, name: str, junk: bytes) -> None:
    case.store.put("junk", junk)
    with pytest.raises(CorruptObject):
        load_engine(case.store, case.with_artefact(name, reference("junk", junk)), name)


def test_an_artefact_of_another_width_is_corrupt(case: Case) -> None:
    with pytest.raises(CorruptObject, match="gives 128 features"):
        load_engine(case.store, case.trunk.model_copy(update={"feature_dim": 64}))


def test_a_trunk_without_an_artefact_for_an_engine_says_so(case: Case) -> None:
    old = case.with_artefact("litert", case.trunk.artefacts["litert"])
    with pytest.raises(CorruptObject, match="no artefact for onnx"):
        load_engine(case.store, old, "onnx")
    with pytest.raises(InternalError, match="no engine 'openvino'"):
        load_engine(case.store, case.trunk, "openvino")
