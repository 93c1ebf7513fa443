"""Finding the weight decay: a walk from strong penalties to weak ones, each trained from where the one before ended.

Neighbouring optima lie close together, and all that a change of the penalty does to an optimizer's state can be
computed from the state itself. So a penalty costs a few epochs, memory is needed for one of them only, and the walk can
stop after any epoch and go on bit for bit. It ends early when the validation loss only gets worse.

Source for the walk: J. Friedman, T. Hastie and R. Tibshirani, Regularization Paths for Generalized Linear Models via
Coordinate Descent, 2010, section 2.5 (pathwise warm starts).

Array axes: M memory, P parameter.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ray_cluster.train import lbfgs
from ray_cluster.train.lbfgs import LbfgsState
from services.contracts.models import WeightDecayTrial

TOLERANCE = 1e-3
"""Ends a trial. Coarser than for what is published: validation losses of neighbours differ by more."""
PATIENCE = 3
"""Trials in a row, each no better than the best, after which no weaker penalty is tried."""


def reweight(state: LbfgsState, kernel_size: int, before: float, after: float) -> LbfgsState:
    """The state as if its whole way had been under the weight decay `after`; nothing is evaluated anew.

    The penalty is quadratic in the first `kernel_size` parameters, so its share of the loss, of the gradient and of
    each curvature pair is known exactly.
    """
    change = after - before
    kernel = state.params_P[:kernel_size]
    gradient_P = state.gradient_P.copy()
    gradient_P[:kernel_size] += change * kernel
    gradient_steps_MP = state.gradient_steps_MP.copy()
    gradient_steps_MP[:, :kernel_size] += change * state.steps_MP[:, :kernel_size]
    loss = state.loss + change / 2 * float(np.sum(kernel * kernel))
    # A pair may lose its curvature with the penalty that it was measured under.
    pairs = zip(state.steps_MP, gradient_steps_MP, strict=True)
    bent = np.array([lbfgs.curves(s_P, y_P) for s_P, y_P in pairs], np.bool_)
    return replace(
        state,
        gradient_P=gradient_P,
        loss=loss,
        steps_MP=state.steps_MP[bent],
        gradient_steps_MP=gradient_steps_MP[bent],
        iteration=0,
        converged=False,
    )


def best_trial(trials: Sequence[WeightDecayTrial]) -> int:
    """Where the lowest validation loss is; of equal ones the strongest penalty's. At least one trial."""
    return min(range(len(trials)), key=lambda position: trials[position].validation_loss)


def is_over(trials: Sequence[WeightDecayTrial], weight_decays: Sequence[float]) -> bool:
    """Whether nothing is left to try, or nothing better to be expected."""
    return len(trials) == len(weight_decays) or len(trials) - 1 - best_trial(trials) >= PATIENCE
