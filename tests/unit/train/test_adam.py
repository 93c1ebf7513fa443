"""Adam against its definition."""

import numpy as np
import pytest

from ray_cluster.train import adam


def test_steps_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    state = adam.start(rng.standard_normal(4).astype(np.float32))
    params, mean, square = state.params_P.astype(np.float64), np.zeros(4), np.zeros(4)
    rate_P = np.array([0.1, 0.1, 0.01, 0], np.float32)
    for steps in range(1, 30):
        gradient_P = rng.standard_normal(4).astype(np.float32)
        state = adam.step(state, gradient_P, rate_P)
        mean = 0.9 * mean + 0.1 * gradient_P
        square = 0.999 * square + 0.001 * gradient_P.astype(np.float64) ** 2
        params -= rate_P * (mean / (1 - 0.9**steps)) / (np.sqrt(square / (1 - 0.999**steps)) + 1e-7)
    np.testing.assert_allclose(state.params_P, params, rtol=1e-4)
    assert {each.dtype for each in (state.params_P, state.mean_P, state.square_P)} == {np.dtype(np.float32)}


def test_a_step_leaves_the_state_before_as_it_was() -> None:
    before = adam.start(np.ones(2, np.float32))
    after = adam.step(before, np.ones(2, np.float32), np.full(2, 0.1, np.float32))
    assert before.params_P.tolist() == [1, 1]
    assert after.params_P == pytest.approx(0.9, abs=1e-3)
