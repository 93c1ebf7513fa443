"""The head's losses and gradients: right, and the same whoever computes the shards."""

import numpy as np
import pytest

from ray_cluster.train import fingerprints, fit_loop, head_recipe, softmax_problem
from ray_cluster.train.fit_loop import FitSettings, FitState, Phase
from ray_cluster.train.lbfgs import Vector
from ray_cluster.train.shards import Compute, ShardMap, ShardResult, ShardTask, compute_here, deal
from ray_cluster.train.softmax_problem import HeadProblem, Rows

FEATURES, CLASSES = 12, 3
COUNT = 2 * softmax_problem.SHARD_ROWS + 100
"""Three shards of training rows."""


@pytest.fixture(scope="module", autouse=True)
def deterministic() -> None:
    fingerprints.make_deterministic()


def make_rows(seed: int, count: int) -> Rows:
    rng = np.random.default_rng(seed)
    labels_N = rng.integers(0, CLASSES, count)
    centres_KD = np.random.default_rng(0).normal(0, 1, (CLASSES, FEATURES))
    features_ND = (centres_KD[labels_N] + rng.normal(0, 1.5, (count, FEATURES))).astype(np.float32)
    return Rows(features_ND, labels_N, np.full(count, 1 / count))


def make_problem(map_shards: ShardMap = compute_here, starts: dict[Phase, Vector] | None = None) -> HeadProblem:
    train, validation = make_rows(1, COUNT), make_rows(2, 200)
    both = make_rows(3, COUNT + 200)
    training = {
        phase: (rows, head_recipe.standardisation(rows.features_ND))
        for phase, rows in ((Phase.SELECT, train), (Phase.FINAL, both))
    }
    return HeadProblem(training, validation, CLASSES, starts or {}, map_shards)


class Workers:
    """A `ShardMap` that has every shard computed by one of several problems of their own."""

    def __init__(self, count: int) -> None:
        self._problems = [make_problem() for _ in range(count)]

    def __call__(self, task: ShardTask, count: int, compute: Compute) -> list[ShardResult]:
        dealt = deal(count, len(self._problems))
        copied = ShardTask(task.quantity, task.rows, task.params_P.copy())  # as if it had been sent
        return [
            problem.compute(copied, shard)
            for problem, shards in zip(self._problems, dealt, strict=True)
            for shard in shards
        ]


def some_params(problem: HeadProblem) -> Vector:
    return np.random.default_rng(7).normal(0, 0.3, problem.parameter_count)


def test_loss_gradient_and_quality_are_those_of_the_formula() -> None:
    problem = make_problem()
    params_P = some_params(problem)
    rows = make_rows(1, COUNT)
    standard = head_recipe.standardisation(rows.features_ND)
    x_ND = (rows.features_ND - standard.mean_D) / standard.scale_D
    kernel_DK, bias_K = head_recipe.split_params(params_P, FEATURES, CLASSES)
    logits_NK = x_ND @ kernel_DK + bias_K
    p_NK = np.exp(logits_NK) / np.exp(logits_NK).sum(axis=1, keepdims=True)
    wrong_NK = (p_NK - np.eye(CLASSES)[rows.labels_N]) / COUNT
    loss, gradient_P = problem.objective(Phase.SELECT)(params_P)
    assert loss == pytest.approx(-np.log(p_NK[np.arange(COUNT), rows.labels_N]).mean(), rel=1e-5)
    wanted_P = np.concatenate([(x_ND.T @ wrong_NK).ravel(), wrong_NK.sum(axis=0)])
    np.testing.assert_allclose(gradient_P, wanted_P, atol=1e-5)
    quality = problem.training_quality(Phase.SELECT, params_P)
    assert quality.loss == loss
    assert quality.accuracy == pytest.approx((p_NK.argmax(axis=1) == rows.labels_N).mean())


def test_the_training_quality_is_of_the_parameters_that_it_was_asked_for() -> None:
    problem = make_problem()
    params_P, other_P = some_params(problem), np.zeros(problem.parameter_count)
    wanted = problem.training_quality(Phase.SELECT, params_P)
    problem.objective(Phase.SELECT)(other_P)
    assert problem.training_quality(Phase.SELECT, params_P) == wanted
    assert problem.training_quality(Phase.FINAL, params_P) != wanted


def test_validation_logits_give_the_validation_quality() -> None:
    problem = make_problem()
    params_P = some_params(problem)
    found = problem.validation_logits(params_P)
    quality = problem.validation_quality(params_P)
    assert found is not None
    assert quality is not None
    logits_NK, labels_N = found
    assert (logits_NK.argmax(axis=1) == labels_N).mean() == pytest.approx(quality.accuracy)


def test_a_phase_begins_where_it_is_told_to() -> None:
    start_P = some_params(make_problem())
    problem = make_problem(starts={Phase.SELECT: start_P})
    assert problem.start(Phase.SELECT) is start_P
    assert problem.start(Phase.SEARCH) is start_P
    assert not problem.start(Phase.FINAL).any()


def fit(problem: HeadProblem, settings: FitSettings) -> FitState:
    state = fit_loop.begin(problem, settings)
    while not state.done:
        state = fit_loop.advance(state, problem, settings)
    return state


def finished(map_shards: ShardMap) -> FitState:
    settings = FitSettings(60, 1e-6, patience=None, refit=True, weight_decays=(1.0, 0.3, 0.1, 0.03, 0.01))
    return fit(make_problem(map_shards), settings)


@pytest.mark.parametrize("workers", [2, 3])
def test_a_fit_with_a_search_has_the_same_bits_at_any_number_of_workers(workers: int) -> None:
    alone, shared = finished(compute_here), finished(Workers(workers))
    assert shared.trials == alone.trials
    assert shared.history == alone.history
    assert shared.result().tobytes() == alone.result().tobytes()


def test_starting_from_the_optimum_takes_fewer_epochs_and_ends_at_the_same_head() -> None:
    settings = FitSettings(100, 1e-6, patience=None, refit=False, weight_decays=(0.05,))
    cold = fit(make_problem(), settings)
    warm = fit(make_problem(starts={Phase.SELECT: cold.result()}), settings)
    assert warm.epoch < cold.epoch / 2
    np.testing.assert_allclose(warm.result(), cold.result(), atol=0.02)
