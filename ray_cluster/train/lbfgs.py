"""Limited-memory BFGS with explicit state, so that a fit can stop after any iteration and go on bit for bit.

Source: J. Nocedal and S. Wright, Numerical Optimization, 2nd ed., algorithms 7.4 (two-loop recursion) and 7.5, with
the backtracking line search of algorithm 3.1 (Armijo condition). On a strongly convex objective, such as a softmax
regression with an L2 penalty, the curvature condition s·y > 0 then holds without a Wolfe search.

All arithmetic is float64 NumPy, on one thread, on vectors of P parameters; how the objective is evaluated, and on how
many machines, is the caller's affair. The same state and objective give the same next state.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Objective = Callable[[Vector], tuple[float, Vector]]
"""Parameters [P] to (loss, gradient [P])."""

MEMORY = 10
"""Curvature pairs kept."""
ARMIJO = 1e-4
MAX_BACKTRACKS = 30


@dataclass(frozen=True, slots=True)
class LbfgsState:
    """Everything the next iteration depends on. Saved whole in a checkpoint."""

    params_P: Vector
    gradient_P: Vector
    loss: float
    steps_MP: Vector
    """The newest parameter differences, oldest first; at most `MEMORY` rows."""
    gradient_steps_MP: Vector
    """The gradient differences that belong to `steps_MP`."""
    iteration: int
    converged: bool


def start(params_P: Vector, objective: Objective) -> LbfgsState:
    """The state before the first iteration; evaluates the objective once."""
    loss, gradient_P = objective(params_P)
    empty_MP = np.zeros((0, params_P.size))
    return LbfgsState(params_P, gradient_P, loss, empty_MP, empty_MP, 0, False)


def iterate(state: LbfgsState, objective: Objective, tolerance: float) -> LbfgsState:
    """One iteration: a direction, and as many evaluations of the objective as the line search needs, mostly one.

    Sets `converged` when the loss fell by no more than `tolerance` times its magnitude, or when no step along the
    direction lowers it, which for a convex objective means that floating point can do no better.
    """
    direction_P = _direction(state)
    slope = _dot(state.gradient_P, direction_P)
    length = 1.0 if len(state.steps_MP) else 1.0 / max(np.sqrt(_dot(state.gradient_P, state.gradient_P)), 1.0)
    for _ in range(MAX_BACKTRACKS):
        params_P = state.params_P + length * direction_P
        loss, gradient_P = objective(params_P)
        if loss <= state.loss + ARMIJO * length * slope:
            return _advance(state, params_P, loss, gradient_P, tolerance)
        length /= 2
    return replace(state, iteration=state.iteration + 1, converged=True)


def curves(s_P: Vector, y_P: Vector) -> bool:
    """Whether a pair shows curvature. Rounding can lose that of a tiny step; the approximation would be indefinite."""
    return _dot(s_P, y_P) > 1e-14 * _dot(y_P, y_P)


def _dot(a_P: Vector, b_P: Vector) -> float:
    """On one thread. BLAS shares a long vector among as many as the machine has, and then its sum, and with it the
    result of the fit, depends on their number; on a busy machine it also waits for them a hundred times as long as it
    computes."""
    return float(np.einsum("p,p->", a_P, b_P))


def _direction(state: LbfgsState) -> Vector:
    """Minus the inverse Hessian's approximation times the gradient, by the two-loop recursion."""
    q_P = state.gradient_P.copy()
    pairs = list(zip(state.steps_MP, state.gradient_steps_MP, strict=True))
    alphas: list[float] = []
    for s_P, y_P in reversed(pairs):
        alpha = _dot(s_P, q_P) / _dot(y_P, s_P)
        alphas.append(alpha)
        q_P -= alpha * y_P
    if pairs:
        s_P, y_P = pairs[-1]
        q_P *= _dot(s_P, y_P) / _dot(y_P, y_P)
    for (s_P, y_P), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = _dot(y_P, q_P) / _dot(y_P, s_P)
        q_P += (alpha - beta) * s_P
    return -q_P


def _advance(state: LbfgsState, params_P: Vector, loss: float, gradient_P: Vector, tolerance: float) -> LbfgsState:
    s_P = params_P - state.params_P
    y_P = gradient_P - state.gradient_P
    steps_MP, gradient_steps_MP = state.steps_MP, state.gradient_steps_MP
    if curves(s_P, y_P):
        steps_MP = np.vstack([steps_MP, s_P])[-MEMORY:]
        gradient_steps_MP = np.vstack([gradient_steps_MP, y_P])[-MEMORY:]
    converged = state.loss - loss <= tolerance * max(abs(loss), 1e-12)
    return LbfgsState(params_P, gradient_P, loss, steps_MP, gradient_steps_MP, state.iteration + 1, converged)
