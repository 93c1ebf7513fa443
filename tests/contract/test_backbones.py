"""One contract for every backbone: from a file of weights to features and predictions, against Keras itself.

Weights are random, since no pretrained ones are at hand for most, and pictures small, to keep this in minutes.

Array axes: B batch, H height, W width, C channel, D feature, K class.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import imagenet_utils
from keras.src.legacy.saving import legacy_h5_format
from keras.src.utils import file_utils

from ray_cluster.vision import blocks, drawn, images
from ray_cluster.vision.activation_maps import Mapped, MappedNetwork
from ray_cluster.vision.after_pooling import output_and_gradient
from ray_cluster.vision.backbones import ARCHITECTURES, build_network, top_layer
from ray_cluster.vision.drawing.scenes import Pose, draw_scene
from ray_cluster.vision.engines import KINDS, Engine, load_engine, read_flatbuffer
from ray_cluster.vision.engines.tensorflow_graph import TensorFlowEngine
from ray_cluster.vision.network_tails import NetworkTail
from ray_cluster.vision.pooled_graphs import read_pooled_graph
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.trunk_builder import build_trunk
from ray_cluster.vision.trunks import find_trunk
from ray_cluster.vision.uppers import export_tail, load_upper
from ray_cluster.vision.weight_loading import load_network
from services.contracts.backbones import BACKBONES, BackboneName, multiply_adds
from services.contracts.jobs import WeightsUri
from services.contracts.models import TrunkManifest, TrunkRecipe
from services.runtime.objects import ObjectStore, open_store

CLASSES = 7
TOLERANCE = 5e-4
"""Largest difference between any engine's and Keras' features, as a share of the largest feature."""

_apps = keras.applications
PREPROCESS_INPUT: dict[BackboneName, Callable[[np.ndarray], np.ndarray]] = {
    BackboneName.REKINDLE_TINY: lambda images_BHWC: images_BHWC / 127.5 - 1,
    BackboneName.MOBILENET: _apps.mobilenet.preprocess_input,
    BackboneName.MOBILENET_V2: _apps.mobilenet_v2.preprocess_input,
    BackboneName.EFFICIENTNET_V2_B0: _apps.efficientnet_v2.preprocess_input,
    BackboneName.EFFICIENTNET_V2_B1: _apps.efficientnet_v2.preprocess_input,
    BackboneName.EFFICIENTNET_V2_B2: _apps.efficientnet_v2.preprocess_input,
    BackboneName.EFFICIENTNET_V2_B3: _apps.efficientnet_v2.preprocess_input,
    BackboneName.RESNET50: _apps.resnet50.preprocess_input,
    BackboneName.INCEPTION_V3: _apps.inception_v3.preprocess_input,
    BackboneName.CONVNEXT_TINY: _apps.convnext.preprocess_input,
}


def liven(network: keras.Model, images_BHWC: np.ndarray, seed: int = 0) -> None:
    """Random numbers for what Keras starts at 0 or 1, and normalisation that fits the pictures.

    Without it a deep random network maps every picture to the same features, and a test of them would prove nothing.
    """
    rng = np.random.default_rng(seed)
    for variable in network.variables:
        shape = tuple(variable.shape)
        if not variable.dtype.startswith("float") or len(shape) != 1:
            continue
        if variable.name in ("beta", "bias"):
            variable.assign(rng.normal(0, 0.1, shape))
        elif not variable.name.startswith("moving"):  # scales
            variable.assign(rng.uniform(0.8, 1.2, shape))
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0  # one pass in training mode then stores the pictures' own statistics,
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0  # as they will be when nothing is dropped
    network(images_BHWC, training=True)


def pictures(size: int, seed: int = 0) -> np.ndarray:
    """One of each of the demo's objects: uint8 [6, size, size, 3]."""
    scenes = [(draw, np.random.default_rng([seed, n])) for n, draw in enumerate(drawn.OBJECTS.values())]
    return np.stack([np.asarray(draw_scene(draw(rng), Pose(20), size, rng)) for draw, rng in scenes])


def save_legacy(network: keras.Model, path: Path) -> None:
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, network)


@dataclass(frozen=True)
class Case:
    """One backbone with random weights, saved with its top in the legacy format, and the trunk that came of it."""

    backbone: BackboneName
    image_size: int
    network: keras.Model
    images_BHWC: np.ndarray
    store: ObjectStore
    recipe: TrunkRecipe
    trunk: TrunkManifest
    engines: dict[str, Engine]
    bare: keras.Model
    """The same network without its top, of other weights."""
    keras_features_BD: np.ndarray
    keras_logits_BK: np.ndarray
    """What `keras.applications` computes, by its own preprocessing."""


def load_engines(store: ObjectStore, trunk: TrunkManifest) -> dict[str, Engine]:
    """All that run here; one where they would all give the pixels."""
    on_cpu = [name for name, kind in KINDS.items() if not kind.on_gpu]
    return {name: load_engine(store, trunk, name) for name in (on_cpu[:1] if trunk.is_identity else on_cpu)}


def preprocessed(backbone: BackboneName, images_BHWC: np.ndarray) -> np.ndarray:
    return PREPROCESS_INPUT[backbone](images_BHWC.astype(np.float32))


ALIKE = {BackboneName.EFFICIENTNET_V2_B1, BackboneName.EFFICIENTNET_V2_B2}
"""Layer for layer what B0 and B3 are, of widths and depths between theirs: only their tables are checked."""


@pytest.fixture(scope="module", params=[backbone for backbone in BackboneName if backbone not in ALIKE])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    backbone: BackboneName = request.param
    image_size = max(64, BACKBONES[backbone].min_image_size)
    folder = tmp_path_factory.mktemp(str(backbone))
    network = build_network(backbone, image_size, CLASSES)
    images_BHWC = pictures(image_size)
    inputs_BHWC = preprocessed(backbone, images_BHWC)
    # Statistics of few pictures are lopsided, and the network would then amplify rounding errors without bound.
    liven(network, preprocessed(backbone, np.concatenate([pictures(image_size, seed) for seed in range(4)])))
    path = folder / "legacy.h5"
    save_legacy(network, path)
    store = open_store((folder / "bucket").as_uri())
    recipe = TrunkRecipe(backbone=backbone, weights=WeightsUri(uri=path.as_uri()), image_size=image_size)
    trunk = build_trunk(store, recipe)
    # The last layer with weights is the classifier; what goes into it, flattened, are the pooled features.
    top = [layer for layer in network.layers if layer.weights][-1]
    features, logits = keras.Model(network.input, [top.input, network.output])(inputs_BHWC, training=False)
    yield Case(
        backbone,
        image_size,
        network,
        images_BHWC,
        store,
        recipe,
        trunk,
        load_engines(store, trunk)
        # The one for GPUs with its batches, but on the CPU.
        | {"tensorflow_gpu": TensorFlowEngine(store.get(trunk.artefacts["tensorflow"].key), image_size, batch_size=4)},
        build_network(backbone, image_size, None),
        keras_features_BD=np.asarray(features).reshape(len(images_BHWC), -1),
        keras_logits_BK=np.asarray(logits),
    )
    keras.backend.clear_session()


def test_the_table_of_facts_is_true(case: Case) -> None:
    facts = BACKBONES[case.backbone]
    assert case.trunk.feature_dim == facts.feature_dim
    assert case.keras_features_BD.shape == (len(case.images_BHWC), facts.feature_dim)


def check_costs(backbone: BackboneName, network: keras.Model, image_size: int) -> None:
    """The layers' own sum, at another size than the table's: every value of a layer's output takes its kernel once."""
    top = top_layer(backbone, network)
    counted = sum(
        math.prod(layer.output.shape[1:-1]) * math.prod(variable.shape)
        for layer in network.layers
        for variable in layer.weights
        if layer is not top and variable.path.endswith("kernel")
    )
    least = 0.56 if backbone is BackboneName.INCEPTION_V3 else 0.94
    assert least <= counted / multiply_adds(backbone, image_size) <= 1.02


def test_the_table_of_costs_is_true(case: Case) -> None:
    check_costs(case.backbone, case.network, case.image_size)


@pytest.mark.parametrize("backbone", sorted(ALIKE))
def test_so_are_the_tables_of_those_between_two_others(backbone: BackboneName) -> None:
    image_size = max(64, BACKBONES[backbone].min_image_size)
    network = build_network(backbone, image_size, CLASSES)
    top = top_layer(backbone, network)
    assert top is not None
    assert top.input.shape[-1] == BACKBONES[backbone].feature_dim
    assert len(blocks.block_names(backbone, network)) == BACKBONES[backbone].block_count
    check_costs(backbone, network, image_size)


def test_features_are_those_of_keras(case: Case) -> None:
    expected_BD = case.keras_features_BD
    scale = np.abs(expected_BD).max()
    assert expected_BD.std(axis=0).max() > 0.05 * scale, "the pictures all look the same to this network"
    for name, engine in case.engines.items():
        actual_BD = engine.features(case.images_BHWC)
        assert (actual_BD.dtype, actual_BD.shape[1]) == (np.float32, engine.feature_dim)
        np.testing.assert_allclose(actual_BD, expected_BD, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_an_image_alone_has_the_same_features_bit_for_bit(case: Case) -> None:
    for name, engine in case.engines.items():
        together_BD = engine.features(case.images_BHWC)
        alone_BD = engine.features(case.images_BHWC[1:2])
        assert alone_BD.tobytes() == together_BD[1:2].tobytes(), name
    for name in ("litert", "onnx"):
        again_BD = load_engine(case.store, case.trunk, name).features(case.images_BHWC)
        assert again_BD.tobytes() == case.engines[name].features(case.images_BHWC).tobytes(), name


def test_the_pretrained_top_gives_keras_predictions(case: Case) -> None:
    assert case.trunk.top is not None
    top = Tail.from_bytes(case.store.get(case.trunk.top.key))
    logits_BK = case.keras_logits_BK
    scale = np.abs(logits_BK).max()
    np.testing.assert_allclose(
        top.logits(case.engines["litert"].features(case.images_BHWC)), logits_BK, rtol=0, atol=5 * TOLERANCE * scale
    )


def after_the_map(flatbuffer: bytes, mapped: Mapped) -> np.ndarray:
    """The network's output, worked out from its map."""
    return output_and_gradient(
        read_pooled_graph(flatbuffer), mapped.map_HWC.mean(axis=(0, 1)), np.zeros_like(mapped.output_D)
    )[0]


def test_the_map_before_the_pooling_makes_the_features(case: Case) -> None:
    """What follows the map depends on its mean alone; nearly all of it for ConvNeXt, which normalises."""
    assert case.trunk.top is not None
    flatbuffer, top = read_flatbuffer(case.store, case.trunk), Tail.from_bytes(case.store.get(case.trunk.top.key))
    network = MappedNetwork(flatbuffer)
    mapped, expected_D = network.run(case.images_BHWC[1:2]), case.engines["litert"].features(case.images_BHWC[1:2])[0]
    for found_D in (mapped.output_D, after_the_map(flatbuffer, mapped)):
        np.testing.assert_allclose(found_D, expected_D, rtol=0, atol=TOLERANCE * np.abs(expected_D).max())
    logits_K = top.logits(expected_D[np.newaxis])[0]
    if case.backbone is not BackboneName.CONVNEXT_TINY:
        means = [network.class_map(mapped, top.kernel_DK[:, k]).mean() + top.bias_K[k] for k in range(CLASSES)]
        np.testing.assert_allclose(means, logits_K, rtol=0, atol=5 * TOLERANCE * np.abs(logits_K).max())


def test_the_trunk_is_found_again_and_not_built_twice(case: Case) -> None:
    assert find_trunk(case.store, case.recipe) == case.trunk
    before = {info.key: info.modified_at for info in case.store.list(f"trunks/{case.trunk.trunk_id}/")}
    assert build_trunk(case.store, case.recipe) == case.trunk
    assert {info.key: info.modified_at for info in case.store.list(f"trunks/{case.trunk.trunk_id}/")} == before


def test_weights_without_top_in_the_current_format_give_the_same_features(case: Case, tmp_path: Path) -> None:
    top_weights = len([layer for layer in case.network.layers if layer.weights][-1].weights)
    case.bare.set_weights(case.network.get_weights()[:-top_weights])
    path = tmp_path / "no_top.weights.h5"
    case.bare.save_weights(path)
    loaded = load_network(case.backbone, case.image_size, path)
    assert loaded.top is None
    actual_BD = np.asarray(loaded.network(preprocessed(case.backbone, case.images_BHWC), training=False))
    scale = np.abs(case.keras_features_BD).max()
    np.testing.assert_allclose(actual_BD, case.keras_features_BD, rtol=0, atol=1e-5 * scale)


def test_the_table_of_blocks_is_true(case: Case) -> None:
    names = blocks.block_names(case.backbone, case.network)
    assert len(names) == BACKBONES[case.backbone].block_count
    assert blocks.block_names(case.backbone, case.bare) == names
    for count in range(1, len(names)):
        block = blocks.cut_name(case.backbone, case.bare, f"top_blocks:{count}")
        assert block == names[-count]
        assert blocks.flat_size(blocks.cut_tensor(case.backbone, case.bare, block)) > 0


ONE_OF_EACH_PREPROCESSING = {BackboneName.REKINDLE_TINY, BackboneName.RESNET50, BackboneName.EFFICIENTNET_V2_B0}
"""Cut at the input, preprocessing moves from the trunk into the tail; in all else backbones are alike there."""


CUT = [
    backbone
    for backbone in BackboneName
    if backbone not in {*ALIKE, BackboneName.MOBILENET, BackboneName.EFFICIENTNET_V2_B3}
]
"""The others are cut as MobileNetV2 and B0 are."""


def cuts(backbone: BackboneName) -> list[str]:
    """Where to try it."""
    middle = f"top_blocks:{BACKBONES[backbone].block_count // 2}"
    return [middle, "input"] if backbone in ONE_OF_EACH_PREPROCESSING else [middle]


@pytest.mark.parametrize("case", CUT, indirect=True, scope="module")
def test_cut_anywhere_the_parts_together_are_the_whole_network(case: Case) -> None:
    for cut in cuts(case.backbone):
        trunk = build_trunk(case.store, case.recipe.model_copy(update={"cut": cut}))
        assert trunk.feature_shape is not None
        assert trunk.feature_dim == math.prod(trunk.feature_shape)
        assert case.trunk.top is not None
        network = export_tail(load_upper(case.store, trunk), Tail.from_bytes(case.store.get(case.trunk.top.key)))
        tail = NetworkTail(network.flatbuffer)
        assert (tail.feature_dim, tail.class_count) == (trunk.feature_dim, CLASSES)
        logits_BK = case.keras_logits_BK
        tolerance = (5 if trunk.is_identity else 20) * TOLERANCE * np.abs(logits_BK).max()
        for name, engine in load_engines(case.store, trunk).items():
            features_BD = engine.features(case.images_BHWC)
            assert features_BD.astype(trunk.feature_dtype).astype(np.float32).tobytes() == features_BD.tobytes(), name
            np.testing.assert_allclose(tail.logits(features_BD), logits_BK, rtol=0, atol=tolerance, err_msg=name)
            assert tail.logits(features_BD[1:2]).tobytes() == tail.logits(features_BD)[1:2].tobytes(), name
        mapped = MappedNetwork(network.flatbuffer).run(features_BD[1:2])
        for found_K in (mapped.output_D, after_the_map(network.flatbuffer, mapped)):
            np.testing.assert_allclose(found_K, tail.logits(features_BD[1:2])[0], rtol=0, atol=tolerance)


class _Asked(Exception):
    """Keras asked for its weights file."""


@pytest.mark.parametrize("backbone", [name for name in BackboneName if ARCHITECTURES[name].imagenet_url])
def test_imagenet_weights_are_the_file_that_keras_itself_would_download(
    backbone: BackboneName, monkeypatch: pytest.MonkeyPatch
) -> None:
    default_sizes: list[int] = []
    obtain_input_shape = imagenet_utils.obtain_input_shape

    def noting_the_size(*args: object, default_size: int, **options: object) -> object:
        default_sizes.append(default_size)
        return obtain_input_shape(*args, default_size=default_size, **options)

    def asked(file_name: str, origin: str, cache_subdir: str, file_hash: str | None = None) -> str:
        raise _Asked(file_name, origin, cache_subdir, file_hash)

    monkeypatch.setattr(imagenet_utils, "obtain_input_shape", noting_the_size)
    monkeypatch.setattr(file_utils, "get_file", asked)
    architecture = ARCHITECTURES[backbone]
    with pytest.raises(_Asked) as request:
        architecture.construct(weights="imagenet")
    url = architecture.imagenet_url
    assert url is not None
    assert request.value.args == (url.rpartition("/")[2], url, "models", architecture.imagenet_hash)
    assert default_sizes == [BACKBONES[backbone].default_image_size]


@pytest.mark.parametrize("backbone", [name for name in BackboneName if ARCHITECTURES[name].imagenet_url])
def test_smaller_images_than_the_table_says_are_refused_by_keras(backbone: BackboneName) -> None:
    with pytest.raises(ValueError, match="at least"):
        build_network(backbone, BACKBONES[backbone].min_image_size - 1, None)


@pytest.mark.shared_data
def test_imagenet_top_names_real_produce(data_dir: Path, mobilenet_weights: Path, tmp_path: Path) -> None:
    """57/58, 32/33, 23/25 and 29/29 by the weights' own measure."""
    store = open_store(tmp_path.as_uri())
    weights = WeightsUri(uri=mobilenet_weights.as_uri())
    trunk = build_trunk(store, TrunkRecipe(backbone=BackboneName.MOBILENET_V2, weights=weights, image_size=224))
    assert trunk.top is not None
    engine, top = load_engine(store, trunk), Tail.from_bytes(store.get(trunk.top.key))
    imagenet_indices = {"granny_smith": 948, "bell_pepper": 945, "pineapple": 953, "zucchini": 939}
    least_right = {"granny_smith": 56, "bell_pepper": 31, "pineapple": 22, "zucchini": 28}
    for label, index in imagenet_indices.items():
        paths = sorted((data_dir / "datasets" / "produce10" / "test" / label).iterdir())
        images_BHWC = np.stack([images.decode(path.read_bytes(), 224) for path in paths])
        predicted_B = top.probabilities(engine.features(images_BHWC)).argmax(axis=1)
        assert (predicted_B == index).sum() >= least_right[label], label
