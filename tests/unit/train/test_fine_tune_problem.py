"""Losses and gradients of a real network above a cut, and the tail that it becomes."""

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from ray_cluster.train import head_recipe
from ray_cluster.train.fine_tune_data import Places
from ray_cluster.train.fine_tune_problem import Images, NetworkProblem, Recipe
from ray_cluster.train.shards import Compute, ShardMap, ShardResult, ShardTask, compute_here, deal
from ray_cluster.vision.engines import load_engine
from ray_cluster.vision.network_tails import NetworkTail
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.trunk_builder import build_trunk
from ray_cluster.vision.uppers import export_tail, load_upper
from services.contracts.backbones import BackboneName
from services.contracts.models import TrunkRecipe
from services.runtime.objects import ObjectStore, open_store

CLASSES, IMAGES, BATCH = 3, 20, 18
RECIPE = TrunkRecipe(backbone=BackboneName.REKINDLE_TINY, weights="bundled", image_size=32, cut="top_blocks:1")


class Held:
    """Features in memory; view 1 is something else than view 0."""

    def __init__(self, features_ND: np.ndarray) -> None:
        self.features_ND = features_ND

    def read(self, places: Places) -> np.ndarray:
        return np.stack([self.features_ND[image] * (1 if view == 0 else 0.5) for image, view in places])

    def expect(self, places: Places) -> None:
        pass


class Case:
    """The problem, and what is known of it without TensorFlow."""

    def __init__(self, store: ObjectStore) -> None:
        trunk = build_trunk(store, RECIPE)
        pooled = build_trunk(store, RECIPE.model_copy(update={"cut": "pooled"}))
        rng = np.random.default_rng(0)
        images_BHWC = rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8)
        self.pooled_NF = load_engine(store, pooled).features(images_BHWC)
        self.features_ND = load_engine(store, trunk).features(images_BHWC)
        self.labels_N = rng.integers(0, CLASSES, IMAGES)
        self.head = Tail(rng.normal(0, 0.1, (128, CLASSES)).astype(np.float32), np.ones(CLASSES, np.float32))
        self._store, self._trunk = store, trunk

    def problem(self, map_shards: ShardMap = compute_here, *, dropout: float = 0.0, l2: float = 0.0) -> NetworkProblem:
        weights_N = np.full(IMAGES, 1 / IMAGES)
        images = Images(Held(self.features_ND), self.labels_N, weights_N)
        standard = head_recipe.standardisation(self.pooled_NF)
        recipe = Recipe(seed=5, batch_size=BATCH, dropout=dropout, l2=l2, views=(0, 1))
        upper = load_upper(self._store, self._trunk)
        return NetworkProblem(upper, standard, CLASSES, images, images, recipe, map_shards)


@pytest.fixture(scope="module")
def deterministic() -> None:
    """As `make_deterministic`, but for the threads: another test may have begun to compute in this process."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def case(deterministic: None, tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder: Path = tmp_path_factory.mktemp("bucket")
    return Case(open_store(folder.as_uri()))


def test_it_begins_where_the_fit_ended(case: Case) -> None:
    problem = case.problem()
    quality = problem.validation_quality(problem.start(case.head))
    assert quality is not None
    probabilities_NK = case.head.probabilities(case.pooled_NF)
    loss = -np.log(probabilities_NK[np.arange(IMAGES), case.labels_N]).mean()
    assert quality.loss == pytest.approx(loss, rel=5e-3)  # the activations at the cut are rounded
    assert quality.accuracy == pytest.approx((probabilities_NK.argmax(axis=1) == case.labels_N).mean(), abs=0.051)


def test_it_begins_there_whatever_it_has_computed_before(case: Case) -> None:
    """A standby has warmed up, and a helper has computed shards, before they run the job."""
    problem = case.problem()
    start_P = problem.start(case.head)
    problem.warm_up(start_P)
    problem.step(0, 0, start_P + 1)
    assert problem.start(case.head).tobytes() == start_P.tobytes()


def test_the_gradient_is_the_slope_of_the_loss(case: Case) -> None:
    l2 = 0.5
    problem = case.problem(dropout=0.3, l2=l2)
    params_P = problem.start(case.head)
    kernel = slice(problem.block_parameters, len(params_P) - CLASSES)

    def loss(at_P: np.ndarray) -> float:
        return problem.step(0, 0, at_P).loss + l2 / 2 * float((at_P[kernel].astype(np.float64) ** 2).sum())

    gradient_P = problem.step(0, 0, params_P).gradient_P
    for part in (slice(0, problem.block_parameters), slice(problem.block_parameters, len(params_P))):
        direction_P = np.zeros_like(params_P)
        direction_P[part] = gradient_P[part] / np.linalg.norm(gradient_P[part])
        step = np.float32(1e-2)
        slope = (loss(params_P + step * direction_P) - loss(params_P - step * direction_P)) / (2 * float(step))
        assert slope == pytest.approx(float(np.linalg.norm(gradient_P[part])), rel=0.03)


def shared_by(workers: Sequence[NetworkProblem]) -> ShardMap:
    """Other processes' problems, which compute the last shards first."""

    def compute_shared(task: ShardTask, count: int, compute: Compute) -> list[ShardResult]:
        dealt = zip(workers, deal(count, len(workers)), strict=True)
        answers = {shard: each.compute(task, shard) for each, shards in reversed([*dealt]) for shard in shards}
        return [answers[shard] for shard in range(count)]

    return compute_shared


@pytest.mark.parametrize("count", [1, 2, 3])
def test_who_computes_which_shard_changes_no_bit(case: Case, count: int) -> None:
    alone = case.problem(dropout=0.3)
    shared = case.problem(shared_by([case.problem(dropout=0.3) for _ in range(count)]), dropout=0.3)
    params_P = alone.start(case.head)
    for epoch, step in ((0, 0), (0, 1), (1, 0)):
        expected, actual = alone.step(epoch, step, params_P), shared.step(epoch, step, params_P)
        assert actual.gradient_P.tobytes() == expected.gradient_P.tobytes()
        assert (actual.loss, actual.accuracy) == (expected.loss, expected.accuracy)
    assert shared.validation_quality(params_P) == alone.validation_quality(params_P)


def test_an_epoch_draws_its_own_batches(case: Case) -> None:
    problem = case.problem()
    params_P = problem.start(case.head)
    assert problem.step(0, 0, params_P).loss != problem.step(1, 0, params_P).loss


def test_the_result_is_the_network_with_its_head_on_raw_features(case: Case) -> None:
    problem = case.problem()
    rng = np.random.default_rng(3)
    start_P = problem.start(case.head)
    params_P = start_P + rng.normal(0, 0.01, len(start_P)).astype(np.float32)
    expected = problem.validation_quality(params_P)
    assert expected is not None
    network = export_tail(problem.upper, problem.finish(params_P))
    probabilities_NK = NetworkTail(network.flatbuffer).probabilities(case.features_ND)
    loss = -np.log(probabilities_NK[np.arange(IMAGES), case.labels_N]).mean()
    assert loss == pytest.approx(expected.loss, rel=1e-3)
