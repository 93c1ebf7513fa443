"""The fit's state as a checkpoint, and back, bit for bit: numbers that are computed with go into tensors, not text."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

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
_WEIGHT_DECAY = "weight_decay"
_KERNEL, _BIAS = "tail.kernel", "tail.bias"
_EPOCHS, _TEMPERATURE = "tail.epochs", "tail.temperature"


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A finished fit's result."""

    tail: Tail
    """Its logits are divided by the report's temperature already."""
    report: FitReport

    def tensors(self) -> Tensors:
        """What `finished_head` reads, in a checkpoint of the fit and of what comes after it."""
        report = self.report
        numbers = {_EPOCHS: report.epochs, _WEIGHT_DECAY: report.weight_decay, _TEMPERATURE: report.temperature}
        arrays = {_KERNEL: self.tail.kernel_DK, _BIAS: self.tail.bias_K}
        return tensors_of({**arrays, **numbers}) | _trials_tensors(report.trials)


def to_snapshot(state: FitState, tail: Tail | None = None, temperature: float = 1.0) -> Snapshot:
    """A copy of the state; a finished fit's has the tail as well, and the temperature that is in it."""
    optimizer = {_OPTIMIZER + field.name: getattr(state.optimizer, field.name) for field in fields(LbfgsState)}
    tensors = tensors_of({**optimizer, "best_params": state.best_params_P, "best_loss": state.best_loss})
    tensors |= tensors_of({_WEIGHT_DECAY: state.weight_decay})
    tensors |= history_tensors(state.history) | _trials_tensors(state.trials)
    if tail is not None:
        report = FitReport(
            epochs=state.epoch,
            weight_decay=state.weight_decay,
            trials=list(state.trials),
            temperature=temperature,
        )
        tensors |= FittedHead(tail, report).tensors()
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
            weight_decay=float(tensors[_WEIGHT_DECAY]),
            result_phase=Phase(position["result_phase"]),
            trials=_trials(tensors),
            history=history_of(tensors),
        )
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise CorruptObject(f"the checkpoint is not of this kind of fit: {error}") from error


def finished_head(checkpoint: Checkpoint) -> FittedHead | None:
    """The result, where the checkpoint is a finished fit's, or a later one's."""
    tensors = checkpoint.tensors
    if _KERNEL not in tensors:
        return None
    report = FitReport(
        epochs=int(tensors[_EPOCHS]),
        weight_decay=float(tensors[_WEIGHT_DECAY]),
        trials=list(_trials(tensors)),
        temperature=float(tensors[_TEMPERATURE]),
    )
    return FittedHead(Tail(tensors[_KERNEL].astype(np.float32), tensors[_BIAS].astype(np.float32)), report)


def history_tensors(history: tuple[EpochMetrics, ...]) -> Tensors:
    """The epochs' metrics, a column each; NaN for None."""
    numbers = {name: np.array([getattr(each, name) for each in history], np.int64) for name in _EPOCH_NUMBERS}
    values = {name: np.array([getattr(each, name) for each in history], np.float64) for name in _EPOCH_VALUES}
    return {_HISTORY + name: column for name, column in (numbers | values).items()}


def history_of(tensors: Tensors) -> tuple[EpochMetrics, ...]:
    """What `history_tensors` was given."""
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


def _trials_tensors(trials: Sequence[WeightDecayTrial]) -> Tensors:
    """A column for each field."""
    return {
        _TRIALS + name: np.array([getattr(trial, name) for trial in trials], dtype)
        for name, dtype in _TRIAL_TYPES.items()
    }


def _trials(tensors: Tensors) -> tuple[WeightDecayTrial, ...]:
    columns = [tensors[_TRIALS + name].tolist() for name in _TRIAL_TYPES]
    return tuple(WeightDecayTrial(**dict(zip(_TRIAL_TYPES, row, strict=True))) for row in zip(*columns, strict=True))
