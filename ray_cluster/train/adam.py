"""Adam with explicit state, so that training can stop after any step and go on bit for bit.

Source: D. Kingma and J. Ba, Adam: A Method for Stochastic Optimization, 2015, algorithm 1. All arithmetic is float32
NumPy on vectors; the same state, gradient and rates give the same next state.

Array axes: P parameter.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Vector32 = npt.NDArray[np.float32]

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-7


@dataclass(frozen=True, slots=True)
class AdamState:
    """Everything the next step depends on but the gradient. Saved whole in a checkpoint."""

    params_P: Vector32
    mean_P: Vector32
    """Of the gradients, decaying."""
    square_P: Vector32
    """Of the gradients' squares, decaying."""
    steps: int


def start(params_P: Vector32) -> AdamState:
    """The state before the first step."""
    return AdamState(params_P, np.zeros_like(params_P), np.zeros_like(params_P), 0)


def step(state: AdamState, gradient_P: Vector32, rate_P: Vector32) -> AdamState:
    """One step with a learning rate for each parameter. Arrays of the state before are left as they are."""
    steps = state.steps + 1
    mean_P = _float32(np.float32(BETA_1) * state.mean_P + np.float32(1 - BETA_1) * gradient_P)
    square_P = _float32(np.float32(BETA_2) * state.square_P + np.float32(1 - BETA_2) * (gradient_P * gradient_P))
    # The corrections of both means' bias towards 0, in float64: they are numbers, not arrays.
    scale = np.float32(np.sqrt(1 - BETA_2**steps) / (1 - BETA_1**steps))
    change_P = scale * rate_P * mean_P / (np.sqrt(square_P) + np.float32(EPSILON))
    return AdamState(_float32(state.params_P - change_P), mean_P, square_P, steps)


def _float32(values_P: npt.NDArray[np.floating]) -> Vector32:
    """What is float32 already, also for the type checker."""
    return values_P.astype(np.float32, copy=False)
