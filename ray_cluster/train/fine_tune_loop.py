"""Fine-tuning as a state machine: pure steps over explicit state, so it may stop after any step and go on bit for bit.

What computes losses and gradients is a `FineTuneProblem`; this module knows neither TensorFlow, nor Ray, nor the
bucket.

Array axes: P parameter.
"""

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ray_cluster.train import adam, fine_tune_schedule
from ray_cluster.train.adam import AdamState, Vector32
from ray_cluster.train.fit_loop import Quality
from services.contracts.jobs import EpochMetrics


@dataclass(frozen=True, slots=True)
class StepResult:
    """Of one batch."""

    loss: float
    """Its images' mean cross-entropy, weighted, without the penalty."""
    accuracy: float
    gradient_P: Vector32
    """Of the loss with the penalty."""


class FineTuneProblem(Protocol):
    """What is minimised. Deterministic: equal arguments give equal bits."""

    @property
    def image_count(self) -> int:
        """Images that are trained on."""
        ...

    @property
    def block_parameters(self) -> int:
        """How many of the parameters, from the first, belong to the pretrained blocks; the others are the head's."""
        ...

    def step(self, epoch: int, step: int, params_P: Vector32) -> StepResult:
        """The epoch's batch of that number, both counted from 0."""
        ...

    def validation_quality(self, params_P: Vector32) -> Quality | None:
        """On the validation images; None where there are none."""
        ...


@dataclass(frozen=True, slots=True)
class FineTuneSettings:
    epochs: int
    batch_size: int
    learning_rate: float
    block_rate: float
    patience: int


@dataclass(frozen=True, slots=True)
class FineTuneState:
    """Everything that the rest of fine-tuning depends on."""

    base_step: int
    """The step of the checkpoint that it began from: the number of a checkpoint grows over both stages."""
    optimizer: AdamState
    epoch: int
    """Epochs done."""
    step_in_epoch: int
    """Steps done of the epoch after that."""
    loss_sum: float
    """Over these steps, weighted by their images."""
    accuracy_sum: float
    best_params_P: Vector32
    """Of the lowest validation loss so far, the start included; the newest where there is nothing to validate on."""
    best_epoch: int
    best_loss: float
    done: bool
    history: tuple[EpochMetrics, ...]

    @property
    def step(self) -> int:
        return self.base_step + self.optimizer.steps


def begin(problem: FineTuneProblem, params_P: Vector32, base_step: int) -> FineTuneState:
    """The state before the first step. The start counts as a candidate: fine-tuning makes nothing worse."""
    quality = problem.validation_quality(params_P)
    return FineTuneState(
        base_step=base_step,
        optimizer=adam.start(params_P),
        epoch=0,
        step_in_epoch=0,
        loss_sum=0.0,
        accuracy_sum=0.0,
        best_params_P=params_P,
        best_epoch=0,
        best_loss=np.inf if quality is None else quality.loss,
        done=False,
        history=(),
    )


def advance(state: FineTuneState, problem: FineTuneProblem, settings: FineTuneSettings) -> FineTuneState:
    """One step, and after an epoch's last one what the epoch is worth."""
    images, batch_size = problem.image_count, settings.batch_size
    per_epoch = fine_tune_schedule.steps_per_epoch(images, batch_size)
    result = problem.step(state.epoch, state.step_in_epoch, state.optimizer.params_P)
    rate = fine_tune_schedule.learning_rate(state.optimizer.steps, settings.epochs * per_epoch, settings.learning_rate)
    rate_P = np.full(len(state.optimizer.params_P), rate, np.float32)
    rate_P[: problem.block_parameters] = rate * settings.block_rate
    in_batch = min(batch_size, images - state.step_in_epoch * batch_size)
    state = replace(
        state,
        optimizer=adam.step(state.optimizer, result.gradient_P, rate_P),
        step_in_epoch=state.step_in_epoch + 1,
        loss_sum=state.loss_sum + result.loss * in_batch,
        accuracy_sum=state.accuracy_sum + result.accuracy * in_batch,
    )
    return state if state.step_in_epoch < per_epoch else _end_epoch(state, problem, settings)


def _end_epoch(state: FineTuneState, problem: FineTuneProblem, settings: FineTuneSettings) -> FineTuneState:
    params_P, epoch = state.optimizer.params_P, state.epoch + 1
    quality = problem.validation_quality(params_P)
    metrics = EpochMetrics(
        epoch=epoch,
        epochs=settings.epochs,
        train_loss=state.loss_sum / problem.image_count,
        train_accuracy=state.accuracy_sum / problem.image_count,
        validation_loss=quality.loss if quality else None,
        validation_accuracy=quality.accuracy if quality else None,
    )
    if quality is None or quality.loss < state.best_loss:
        loss = np.inf if quality is None else quality.loss
        state = replace(state, best_params_P=params_P, best_epoch=epoch, best_loss=loss)
    return replace(
        state,
        epoch=epoch,
        step_in_epoch=0,
        loss_sum=0.0,
        accuracy_sum=0.0,
        done=epoch >= settings.epochs or epoch - state.best_epoch >= settings.patience,
        history=(*state.history, metrics),
    )
