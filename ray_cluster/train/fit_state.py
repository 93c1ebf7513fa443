"""The fit's state as a checkpoint, and back, bit for bit: numbers that are computed with go into tensors, not text."""

from dataclasses import fields

import numpy as np
from pydantic import TypeAdapter, ValidationError

from ray_cluster.train.checkpoints import Checkpoint, Snapshot, tensors_of
from ray_cluster.train.fit_loop import FitState, Phase
from ray_cluster.train.lbfgs import LbfgsState
from ray_cluster.vision.tails import Tail
from services.contracts.errors import CorruptObject
from services.contracts.jobs import EpochMetrics

_HISTORY = TypeAdapter(tuple[EpochMetrics, ...])
_OPTIMIZER = "optimizer."
_SCALARS = {"loss": float, "iteration": int, "converged": bool}


def to_snapshot(state: FitState, tail: Tail | None = None) -> Snapshot:
    """A copy of the state; a finished fit's has the tail as well."""
    optimizer = {_OPTIMIZER + field.name: getattr(state.optimizer, field.name) for field in fields(LbfgsState)}
    tensors = tensors_of({**optimizer, "best_params": state.best_params_P, "best_loss": state.best_loss})
    if tail is not None:
        tensors |= tensors_of({"tail.kernel": tail.kernel_DK, "tail.bias": tail.bias_K})
    return Snapshot(
        step=state.epoch,
        epoch=state.epoch,
        tensors=tensors,
        position={
            "phase": state.phase.value,
            "result_phase": state.result_phase.value,
            "best_epoch": state.best_epoch,
            "history": _HISTORY.dump_python(state.history, mode="json"),
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
            result_phase=Phase(position["result_phase"]),
            history=_HISTORY.validate_python(position["history"]),
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
