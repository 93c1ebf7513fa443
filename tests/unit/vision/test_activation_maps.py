"""Where the evidence lies: maps of real networks against what they answer, and on pictures whose evidence is known.

Array axes: B batch, H height, W width, C channel, D feature, K class.
"""

import io
from dataclasses import dataclass

import numpy as np
import pytest
from ai_edge_litert.schema_py_generated import BuiltinOperator
from PIL import Image

from ray_cluster.vision.activation_maps import MappedNetwork
from ray_cluster.vision.after_pooling import output_and_gradient
from ray_cluster.vision.engines import load_engine, read_flatbuffer
from ray_cluster.vision.heat_maps import heat, overlay, png
from ray_cluster.vision.network_tails import NetworkTail
from ray_cluster.vision.pooled_graphs import Operation, PooledGraph
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.trunk_builder import build_trunk
from ray_cluster.vision.uppers import export_tail, load_upper
from services.contracts.backbones import BackboneName
from services.contracts.errors import CorruptObject, InternalError
from services.contracts.models import TrunkManifest, TrunkRecipe
from services.runtime.objects import ObjectStore, open_store
from tests.servers.published import random_tail

RECIPE = TrunkRecipe(backbone=BackboneName.REKINDLE_TINY, weights="bundled", image_size=64)
CORNERS = [(0, 0), (0, 1), (1, 0), (1, 1)]


def picture(corner: tuple[int, int] | None, seed: int = 0) -> np.ndarray:
    """A faint noise, with a checkered square in one corner: uint8 [1, 64, 64, 3]."""
    image_HWC = np.random.default_rng(seed).integers(110, 130, (64, 64, 3), dtype=np.uint8)
    if corner is not None:
        y, x = (46 * place for place in corner)
        checks_HW = np.kron(np.indices((3, 3)).sum(axis=0) % 2, np.ones((6, 6), int))
        image_HWC[y : y + 18, x : x + 18] = np.where(checks_HW[..., np.newaxis], (250, 40, 30), (20, 30, 220))
    return image_HWC[np.newaxis]


@dataclass(frozen=True)
class Networks:
    """The same network as a trunk with a head, and as a trunk that is cut with a tail."""

    store: ObjectStore
    trunk: TrunkManifest
    head: Tail
    cut_trunk: TrunkManifest
    tail: bytes


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """Class 1 of the head looks for what a checkered square adds to the features."""
    store = open_store(tmp_path_factory.mktemp("bucket").as_uri())
    trunk = build_trunk(store, RECIPE)
    features = load_engine(store, trunk).features
    with_BD = np.concatenate([features(picture(corner, seed=1)) for corner in CORNERS])
    kernel_DK = np.stack([np.zeros(128), (with_BD - features(picture(None, seed=1))).mean(axis=0)], axis=1)
    head = Tail(kernel_DK.astype(np.float32), np.array([0, -1], np.float32))
    cut_trunk = build_trunk(store, RECIPE.model_copy(update={"cut": "top_blocks:1"}))
    return Networks(store, trunk, head, cut_trunk, export_tail(load_upper(store, cut_trunk), head).flatbuffer)


def test_the_mean_of_a_class_map_and_the_bias_are_the_logit(networks: Networks) -> None:
    network = MappedNetwork(read_flatbuffer(networks.store, networks.trunk))
    engine, tail = load_engine(networks.store, networks.trunk), random_tail(128, 5, seed=3)
    mapped = network.run(picture((0, 1)))
    assert mapped.map_HWC.shape == (4, 4, 128)
    np.testing.assert_allclose(mapped.output_D, engine.features(picture((0, 1)))[0], rtol=0, atol=1e-5)
    logits_K = tail.logits(mapped.output_D[np.newaxis])[0]
    for k in range(5):
        class_map_HW = network.class_map(mapped, tail.kernel_DK[:, k])
        assert class_map_HW.mean() + tail.bias_K[k] == pytest.approx(logits_K[k], abs=1e-4)


def test_a_fine_tuned_network_has_the_same_map_as_its_trunk_and_head(networks: Networks) -> None:
    whole, tail = MappedNetwork(read_flatbuffer(networks.store, networks.trunk)), MappedNetwork(networks.tail)
    features_BD = load_engine(networks.store, networks.cut_trunk).features(picture((1, 0)))
    mapped = tail.run(features_BD)
    np.testing.assert_allclose(mapped.output_D, NetworkTail(networks.tail).logits(features_BD)[0], rtol=1e-5, atol=1e-4)
    expected_HW = whole.class_map(whole.run(picture((1, 0))), networks.head.kernel_DK[:, 1])
    actual_HW = tail.class_map(mapped, np.array([0, 1], np.float32))
    # The cut trunk's features are rounded to half precision.
    np.testing.assert_allclose(actual_HW, expected_HW, rtol=0, atol=0.01 * np.abs(expected_HW).max())


@pytest.mark.parametrize("corner", CORNERS)
def test_the_map_is_high_where_the_decisive_pattern_is(networks: Networks, corner: tuple[int, int]) -> None:
    network = MappedNetwork(read_flatbuffer(networks.store, networks.trunk))
    heat_HW = heat(network.class_map(network.run(picture(corner)), networks.head.kernel_DK[:, 1]))
    y, x = (2 * place for place in corner)
    assert heat_HW.max() == 1
    assert heat_HW[y : y + 2, x : x + 2].sum() > 0.8 * heat_HW.sum()


def layer_normalisation(gamma_C: np.ndarray, beta_C: np.ndarray) -> PooledGraph:
    """As the converter writes what Keras' layer computes; tensor 0 is the pooled one."""
    op = BuiltinOperator
    steps = [
        (op.MEAN, (0, 10), 1), (op.NEG, (1,), 2), (op.SQUARED_DIFFERENCE, (0, 1), 3), (op.MEAN, (3, 10), 4),
        (op.ADD, (4, 11), 5), (op.RSQRT, (5,), 6), (op.MUL, (6, 12), 7), (op.MUL, (2, 7), 8), (op.MUL, (0, 7), 9),
        (op.ADD, (8, 13), 14), (op.ADD, (9, 14), 15),
    ]  # fmt: skip
    one, all_C = (1, 1), (1, len(gamma_C))
    return PooledGraph(
        map_tensor=-1,
        pooled_tensor=0,
        output_tensor=15,
        operations=tuple(Operation(kind, inputs, output) for kind, inputs, output in steps),
        constants={10: np.array([-1], np.int32), 11: np.float32(1e-6), 12: gamma_C, 13: beta_C},
        shapes={tensor: one if tensor in (1, 2, 4, 5, 6) else all_C for tensor in range(16)},
    )


def test_the_gradient_through_a_normalisation_is_that_of_small_steps() -> None:
    source = np.random.default_rng(0)
    gamma_C, beta_C, pooled_C, direction_C = source.normal(size=(4, 6))
    graph = layer_normalisation(gamma_C, beta_C)
    output_C, gradient_C = output_and_gradient(graph, pooled_C, direction_C)
    normalised_C = (pooled_C - pooled_C.mean()) / np.sqrt(pooled_C.var() + 1e-6)
    np.testing.assert_allclose(output_C, gamma_C * normalised_C + beta_C, atol=1e-9)
    steps_CC = 1e-6 * np.eye(6)
    higher, lower = (
        [output_and_gradient(graph, pooled_C + sign * step_C, direction_C)[0] @ direction_C for step_C in steps_CC]
        for sign in (1, -1)
    )
    np.testing.assert_allclose(gradient_C, (np.array(higher) - lower) / 2e-6, atol=1e-6)


def test_what_is_no_pooling_network_is_refused(networks: Networks) -> None:
    with pytest.raises(InternalError, match="no mean"):
        MappedNetwork(read_flatbuffer(networks.store, networks.cut_trunk))
    for data in (b"", b"no model"):
        with pytest.raises(CorruptObject):
            MappedNetwork(data)


def test_heat_is_the_evidence_for_and_not_that_against() -> None:
    assert heat(np.array([[-4, 0], [1, 2]], np.float32)).tolist() == [[0, 0], [0.5, 1]]
    assert heat(np.array([[-4, -1]], np.float32)).tolist() == [[0, 0]]


def test_an_overlay_colours_what_is_hot_and_leaves_the_rest_grey() -> None:
    blue_HWC = np.full((40, 60, 3), (0, 0, 255), np.uint8)
    drawn_HWC = overlay(blue_HWC, np.array([[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.float32))
    assert (drawn_HWC[20:] == 29).all()  # the luminance of blue
    assert (drawn_HWC[:, 30:] == 29).all()
    red, green, blue = drawn_HWC[3, 3].tolist()
    assert red > 160
    assert green < 100
    assert blue < 60
    shown = Image.open(io.BytesIO(png(drawn_HWC)))
    assert (shown.format, shown.size) == ("PNG", (60, 40))
    assert (np.asarray(shown) == drawn_HWC).all()
