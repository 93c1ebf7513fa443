"""The fit's state as a checkpoint, and back, bit for bit: numbers that are computed with go into tensors, not text."""

from dataclasses import fields

import numpy as np
from pydantic import ValidationError

from ray_cluster.train.checkpoints import Checkpoint, Snapshot, Tensors, tensors_of
from ray_cluster.train.fit_loop import FitState, Phase
from ray_cluster.train.lbfgs import LbfgsState
from ray_cluster.vision.tails import Tail
from services.contracts.errors import CorruptObject
from services.contracts.jobs import EpochMetrics
from services.contracts.models import FitReport, WeightDecayTrial

_HISTORY = "history."
_TRIALS = "trials."
_TRIAL_TYPES = {
    "weight_decay": np.float64,
    "validation_loss": np.float64,
    "validation_accuracy": np.float64,
    "epochs": np.int64,
}
_EPOCH_NUMBERS = ("epoch", "epochs")
_EPOCH_VALUES = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
_OPTIMIZER = "optimizer."
_SCALARS = {"loss": float, "iteration": int, "converged": bool}


def to_snapshot(state: FitState, tail: Tail | None = None, temperature: float = 1.0) -> Snapshot:
    """A copy of the state; a finished fit's has the tail as well, and the temperature that is in it."""
    optimizer = {_OPTIMIZER + field.name: getattr(state.optimizer, field.name) for field in fields(LbfgsState)}
    tensors = tensors_of({**optimizer, "best_params": state.best_params_P, "best_loss": state.best_loss})
    tensors |= tensors_of({"weight_decay": state.weight_decay})
    tensors |= _history_tensors(state.history) | _trials_tensors(state.trials)
    if tail is not None:
        tensors |= tensors_of(
            {"tail.kernel": tail.kernel_DK, "tail.bias": tail.bias_K, "tail.temperature": temperature}
        )
    return Snapshot(
        step=state.epoch,
        epoch=state.epoch,
        tensors=tensors,
        position={
            "phase": state.phase.value,
            "result_phase": state.result_phase.value,
            "best_epoch": state.best_epoch,
        },
    )


def from_checkpoint(checkpoint: Checkpoint) -> FitState:
    """The state that `to_snapshot` saw. Raises `CorruptObject` for a checkpoint of something else."""
    tensors, position = checkpoint.tensors, checkpoint.manifest.position
    try:
        values = {field.name: tensors[_OPTIMIZER + field.name] for field in fields(LbfgsState)}
        scalars = {name: convert(values.pop(name)) for name, convert in _SCALARS.items()}
        return FitState(
            phase=Phase(position["phase"]),
            optimizer=LbfgsState(**values, **scalars),
            epoch=checkpoint.manifest.epoch,
            best_params_P=tensors["best_params"].astype(np.float64),
            best_epoch=int(str(position["best_epoch"])),
            best_loss=float(tensors["best_loss"]),
            weight_decay=float(tensors["weight_decay"]),
            result_phase=Phase(position["result_phase"]),
            trials=_trials(tensors),
            history=_history(tensors),
        )
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise CorruptObject(f"the checkpoint is not of this kind of fit: {error}") from error


def finished_tail(checkpoint: Checkpoint) -> Tail | None:
    """The result, where the checkpoint is a finished fit's."""
    if checkpoint.manifest.position.get("phase") != Phase.DONE.value:
        return None
    return Tail(
        checkpoint.tensors["tail.kernel"].astype(np.float32), checkpoint.tensors["tail.bias"].astype(np.float32)
    )


def finished_report(checkpoint: Checkpoint) -> FitReport:
    """How the head of a finished fit's checkpoint came about."""
    state = from_checkpoint(checkpoint)
    return FitReport(
        epochs=state.epoch,
        weight_decay=state.weight_decay,
        trials=list(state.trials),
        temperature=float(checkpoint.tensors["tail.temperature"]),
    )


def _history_tensors(history: tuple[EpochMetrics, ...]) -> Tensors:
    """The epochs' metrics, a column each; NaN for None."""
    numbers = {name: np.array([getattr(each, name) for each in history], np.int64) for name in _EPOCH_NUMBERS}
    values = {name: np.array([getattr(each, name) for each in history], np.float64) for name in _EPOCH_VALUES}
    return {_HISTORY + name: column for name, column in (numbers | values).items()}


def _history(tensors: Tensors) -> tuple[EpochMetrics, ...]:
    numbers = [tensors[_HISTORY + name].tolist() for name in _EPOCH_NUMBERS]
    values = [tensors[_HISTORY + name].tolist() for name in _EPOCH_VALUES]
    return tuple(
        EpochMetrics(
            epoch=epoch,
            epochs=epochs,
            train_loss=train_loss,
            train_accuracy=train_accuracy,
            validation_loss=None if np.isnan(validation_loss) else validation_loss,
            validation_accuracy=None if np.isnan(validation_accuracy) else validation_accuracy,
        )
        for epoch, epochs, train_loss, train_accuracy, validation_loss, validation_accuracy in zip(
            *numbers, *values, strict=True
        )
    )


def _trials_tensors(trials: tuple[WeightDecayTrial, ...]) -> Tensors:
    """A column for each field."""
    return {
        _TRIALS + name: np.array([getattr(trial, name) for trial in trials], dtype)
        for name, dtype in _TRIAL_TYPES.items()
    }


def _trials(tensors: Tensors) -> tuple[WeightDecayTrial, ...]:
    columns = [tensors[_TRIALS + name].tolist() for name in _TRIAL_TYPES]
    return tuple(WeightDecayTrial(**dict(zip(_TRIAL_TYPES, row, strict=True))) for row in zip(*columns, strict=True))
