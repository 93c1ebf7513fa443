"""The fit as a state machine: pure steps over explicit state, so it may stop after any epoch and go on bit for bit.

    SEARCH ──► SELECT ──► FINAL ──► DONE     SEARCH, where wanted, finds the weight decay (`weight_search`);
                  └─────────────────►        SELECT trains on the training images and watches the validation loss;
                                             FINAL, where wanted, trains again on training and validation images.

What computes losses and gradients is a `Problem`; this module knows neither TensorFlow, nor Ray, nor the bucket.

Array axes: P parameter.
"""

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Protocol

import numpy as np

from ray_cluster.train import lbfgs, weight_search
from ray_cluster.train.lbfgs import LbfgsState, Vector
from services.contracts.jobs import EpochMetrics
from services.contracts.models import WeightDecayTrial


class Phase(StrEnum):
    SEARCH = "search"
    SELECT = "select"
    FINAL = "final"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Quality:
    """On some images: mean cross-entropy in nats, and accuracy from 0 to 1."""

    loss: float
    accuracy: float


class Problem(Protocol):
    """What is minimised in each phase. Deterministic: equal arguments give equal bits."""

    @property
    def parameter_count(self) -> int:
        """P."""
        ...

    @property
    def kernel_size(self) -> int:
        """How many of the parameters, the first ones, the L2 penalty is for."""
        ...

    def start(self, phase: Phase) -> Vector:
        """Where the phase's parameters begin: pure, like everything here."""
        ...

    def objective(self, phase: Phase) -> lbfgs.Objective:
        """The phase's loss and its gradient, without the penalty."""
        ...

    def training_quality(self, phase: Phase, params_P: Vector) -> Quality:
        """On the images that the phase trains on."""
        ...

    def validation_quality(self, params_P: Vector) -> Quality | None:
        """On the validation images, standardised as in SELECT; None where there are none."""
        ...


@dataclass(frozen=True, slots=True)
class FitSettings:
    max_epochs: int
    """Of each phase."""
    tolerance: float
    patience: int | None
    """Epochs without a lower validation loss after which SELECT ends and its best epoch counts; None never."""
    refit: bool
    """Whether there is a FINAL phase."""
    weight_decays: tuple[float, ...]
    """The L2 penalty is half of it times the squared kernel. Of several, strongest first, SEARCH finds the best; there
    are then images to validate on."""

    @property
    def searches(self) -> bool:
        return len(self.weight_decays) > 1

    @property
    def epochs(self) -> int:
        """Of all phases, at most."""
        trials = len(self.weight_decays) if self.searches else 0
        return self.max_epochs * (trials + 1 + (1 if self.refit else 0))


@dataclass(frozen=True, slots=True)
class FitState:
    """Everything that the rest of the fit depends on."""

    phase: Phase
    optimizer: LbfgsState
    epoch: int
    """Epochs done in all phases."""
    best_params_P: Vector
    """SELECT's result so far: of the lowest validation loss with a patience, else the newest. SEARCH's: the best
    trial's."""
    best_epoch: int
    best_loss: float
    """Infinite before the first epoch and where there is nothing to validate on."""
    weight_decay: float
    """What the running phase trains with."""
    result_phase: Phase
    """Which phase the result comes from, once DONE."""
    trials: tuple[WeightDecayTrial, ...] = field(default=())
    """SEARCH's, in their order."""
    history: tuple[EpochMetrics, ...] = field(default=())

    @property
    def step(self) -> int:
        """An epoch is a step."""
        return self.epoch

    @property
    def done(self) -> bool:
        return self.phase is Phase.DONE

    def result(self) -> Vector:
        """The trained parameters. Only when DONE."""
        assert self.phase is Phase.DONE  # noqa: S101
        return self.best_params_P if self.result_phase is Phase.SELECT else self.optimizer.params_P


def penalised(problem: Problem, phase: Phase, weight_decay: float) -> lbfgs.Objective:
    """The phase's loss with the L2 penalty, and its gradient."""
    unpenalised = problem.objective(phase)

    def evaluate(params_P: Vector) -> tuple[float, Vector]:
        loss, gradient_P = unpenalised(params_P)
        kernel = params_P[: problem.kernel_size]
        gradient_P[: problem.kernel_size] += weight_decay * kernel
        return loss + weight_decay / 2 * float(np.sum(kernel * kernel)), gradient_P

    return evaluate


def begin(problem: Problem, settings: FitSettings) -> FitState:
    """The state before the first epoch."""
    phase = Phase.SEARCH if settings.searches else Phase.SELECT
    weight_decay = settings.weight_decays[0]
    params_P = problem.start(phase)
    optimizer = lbfgs.start(params_P, penalised(problem, phase, weight_decay))
    return FitState(phase, optimizer, 0, params_P, 0, np.inf, weight_decay, Phase.SELECT)


def advance(state: FitState, problem: Problem, settings: FitSettings) -> FitState:
    """One epoch: one iteration of L-BFGS, what it is worth, and whether the phase ends."""
    if state.phase is Phase.SEARCH:
        return _advance_search(state, problem, settings)
    if state.phase is Phase.SELECT:
        return _advance_select(state, problem, settings)
    assert state.phase is Phase.FINAL  # noqa: S101
    optimizer = _iterate(state, problem, settings.tolerance)
    state = _measured(replace(state, optimizer=optimizer), problem, settings, None)
    if optimizer.converged or optimizer.iteration >= final_epochs(state, settings):
        return replace(state, phase=Phase.DONE, result_phase=Phase.FINAL)
    return state


def final_epochs(state: FitState, settings: FitSettings) -> int:
    """How long FINAL may go on: with a patience for as many epochs as were best in SELECT, else until it converges."""
    return settings.max_epochs if settings.patience is None else max(1, state.best_epoch)


def _advance_search(state: FitState, problem: Problem, settings: FitSettings) -> FitState:
    optimizer = _iterate(state, problem, weight_search.TOLERANCE)
    if not (optimizer.converged or optimizer.iteration >= settings.max_epochs):
        return _measured(replace(state, optimizer=optimizer), problem, settings, None)
    quality = problem.validation_quality(optimizer.params_P)
    assert quality is not None  # noqa: S101
    state = _measured(replace(state, optimizer=optimizer), problem, settings, quality)
    trial = WeightDecayTrial(
        weight_decay=state.weight_decay,
        validation_loss=quality.loss,
        validation_accuracy=quality.accuracy,
        epochs=optimizer.iteration,
    )
    state = replace(state, trials=(*state.trials, trial))
    if weight_search.best_trial(state.trials) == len(state.trials) - 1:
        state = replace(state, best_params_P=optimizer.params_P)
    if weight_search.is_over(state.trials, settings.weight_decays):
        return _select_after_search(state, problem, settings)
    following = settings.weight_decays[len(state.trials)]
    optimizer = weight_search.reweight(optimizer, problem.kernel_size, state.weight_decay, following)
    return replace(state, optimizer=optimizer, weight_decay=following)


def _select_after_search(state: FitState, problem: Problem, settings: FitSettings) -> FitState:
    """Goes on from the best trial; with a patience from the start, since then the number of epochs counts."""
    weight_decay = state.trials[weight_search.best_trial(state.trials)].weight_decay
    params_P = state.best_params_P if settings.patience is None else problem.start(Phase.SELECT)
    optimizer = lbfgs.start(params_P, penalised(problem, Phase.SELECT, weight_decay))
    return replace(state, phase=Phase.SELECT, optimizer=optimizer, weight_decay=weight_decay, best_params_P=params_P)


def _advance_select(state: FitState, problem: Problem, settings: FitSettings) -> FitState:
    optimizer = _iterate(state, problem, settings.tolerance)
    quality = problem.validation_quality(optimizer.params_P)
    state = _measured(replace(state, optimizer=optimizer), problem, settings, quality)
    watching = settings.patience is not None and quality is not None
    if not watching or (quality is not None and quality.loss < state.best_loss):
        loss = quality.loss if quality is not None else np.inf
        state = replace(state, best_params_P=optimizer.params_P, best_epoch=optimizer.iteration, best_loss=loss)
    stale = settings.patience is not None and optimizer.iteration - state.best_epoch >= settings.patience
    if not (stale or optimizer.converged or optimizer.iteration >= settings.max_epochs):
        return state
    if not settings.refit:
        return replace(state, phase=Phase.DONE, result_phase=Phase.SELECT)
    objective = penalised(problem, Phase.FINAL, state.weight_decay)
    warm = settings.searches and settings.patience is None
    fresh = lbfgs.start(state.best_params_P if warm else problem.start(Phase.FINAL), objective)
    return replace(state, phase=Phase.FINAL, optimizer=fresh)


def _iterate(state: FitState, problem: Problem, tolerance: float) -> LbfgsState:
    objective = penalised(problem, state.phase, state.weight_decay)
    return lbfgs.iterate(state.optimizer, objective, tolerance)


def _measured(state: FitState, problem: Problem, settings: FitSettings, validation: Quality | None) -> FitState:
    """Counts the epoch and notes its metrics."""
    training = problem.training_quality(state.phase, state.optimizer.params_P)
    metrics = EpochMetrics(
        epoch=state.epoch + 1,
        epochs=settings.epochs,
        train_loss=training.loss,
        train_accuracy=training.accuracy,
        validation_loss=validation.loss if validation else None,
        validation_accuracy=validation.accuracy if validation else None,
    )
    return replace(state, epoch=state.epoch + 1, history=(*state.history, metrics))
