"""L-BFGS: reaches the optimum, and goes on from a saved state bit for bit."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_cluster.train import lbfgs


def softmax_regression(seed: int, rows: int = 60, dim: int = 20, classes: int = 4, l2: float = 0.05) -> lbfgs.Objective:
    rng = np.random.default_rng(seed)
    x_ND = rng.standard_normal((rows, dim))
    y_NK = np.eye(classes)[rng.integers(0, classes, rows)]

    def objective(params_P: lbfgs.Vector) -> tuple[float, lbfgs.Vector]:
        w_DK = params_P.reshape(dim, classes)
        z_NK = x_ND @ w_DK
        z_NK = z_NK - z_NK.max(axis=1, keepdims=True)
        log_p_NK = z_NK - np.log(np.exp(z_NK).sum(axis=1, keepdims=True))
        loss = -(y_NK * log_p_NK).sum() / rows + l2 / 2 * (w_DK**2).sum()
        gradient = x_ND.T @ (np.exp(log_p_NK) - y_NK) / rows + l2 * w_DK
        return float(loss), gradient.ravel()

    return objective


def run(objective: lbfgs.Objective, params_P: lbfgs.Vector, iterations: int = 200) -> lbfgs.LbfgsState:
    state = lbfgs.start(params_P, objective)
    while not state.converged and state.iteration < iterations:
        state = lbfgs.iterate(state, objective, tolerance=1e-12)
    return state


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_reaches_the_optimum_of_a_convex_objective(seed: int) -> None:
    state = run(softmax_regression(seed), np.zeros(80))
    assert state.converged
    assert np.linalg.norm(state.gradient_P) < 1e-4


def test_the_optimum_does_not_depend_on_the_start() -> None:
    objective = softmax_regression(1)
    a = run(objective, np.zeros(80))
    b = run(objective, np.random.default_rng(5).standard_normal(80))
    np.testing.assert_allclose(a.params_P, b.params_P, atol=1e-3)


@pytest.mark.parametrize("stop_after", [0, 1, 7, 15])
def test_goes_on_bit_for_bit_from_a_saved_state(stop_after: int) -> None:
    objective = softmax_regression(2)
    whole = lbfgs.start(np.zeros(80), objective)
    for _ in range(20):
        whole = lbfgs.iterate(whole, objective, tolerance=0.0)

    state = lbfgs.start(np.zeros(80), objective)
    for _ in range(stop_after):
        state = lbfgs.iterate(state, objective, tolerance=0.0)
    saved = {
        name: np.copy(getattr(state, name)) for name in ("params_P", "gradient_P", "steps_MP", "gradient_steps_MP")
    }
    resumed = lbfgs.LbfgsState(
        saved["params_P"],
        saved["gradient_P"],
        float(state.loss),
        saved["steps_MP"],
        saved["gradient_steps_MP"],
        state.iteration,
        state.converged,
    )
    for _ in range(20 - stop_after):
        resumed = lbfgs.iterate(resumed, objective, tolerance=0.0)
    assert resumed.params_P.tobytes() == whole.params_P.tobytes()


def test_the_loss_never_rises() -> None:
    objective = softmax_regression(3)
    state = lbfgs.start(np.ones(80), objective)
    for _ in range(30):
        following = lbfgs.iterate(state, objective, tolerance=0.0)
        assert following.loss <= state.loss
        state = following


def test_memory_is_bounded() -> None:
    objective = softmax_regression(4)
    state = lbfgs.start(np.zeros(80), objective)
    for _ in range(lbfgs.MEMORY + 5):
        state = lbfgs.iterate(state, objective, tolerance=0.0)
        assert len(state.steps_MP) <= lbfgs.MEMORY


def test_the_bits_do_not_depend_on_how_many_threads_blas_has() -> None:
    program = (
        "import hashlib\nimport numpy as np\nfrom ray_cluster.train import lbfgs\n"
        "rng = np.random.default_rng(0)\n"
        "scales_P = rng.uniform(0.5, 2, 50_000)\n"  # long enough for BLAS to share
        "objective = lambda p: (float((scales_P * (p - 1) ** 2).sum()), 2 * scales_P * (p - 1))\n"
        "state = lbfgs.start(rng.standard_normal(50_000), objective)\n"
        "for _ in range(8): state = lbfgs.iterate(state, objective, 0.0)\n"
        "print(hashlib.sha256(state.params_P.tobytes()).hexdigest())"
    )
    shas = {
        subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    }
    assert len(shas) == 1
