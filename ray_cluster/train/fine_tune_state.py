"""Fine-tuning's state as a checkpoint, and back, bit for bit.

Such a checkpoint also holds the head that fine-tuning began from, in the form of a finished fit's: whoever looks for
the fit's result finds it in any later checkpoint of the job.
"""

import numpy as np
from pydantic import ValidationError

from ray_cluster.train.adam import AdamState
from ray_cluster.train.checkpoints import Checkpoint, Snapshot, Tensors, tensors_of
from ray_cluster.train.fine_tune_loop import FineTuneState
from ray_cluster.train.fit_loop import Phase
from ray_cluster.train.fit_state import FittedHead, history_of, history_tensors
from ray_cluster.vision.network_tails import TrainedNetwork
from services.contracts.errors import CorruptObject

_STAGE = "fine_tune"
_FLATBUFFER = "network.litert"
_WEIGHTS = "network.weights."
_VECTORS = ("params", "mean", "square", "best_params")
_NUMBERS = ("loss_sum", "accuracy_sum", "best_loss")


def to_snapshot(state: FineTuneState, head: FittedHead) -> Snapshot:
    """The state and the head that it began from. The arrays of a state never change, so they need no copy."""
    optimizer = state.optimizer
    tensors = {
        "params": optimizer.params_P,
        "mean": optimizer.mean_P,
        "square": optimizer.square_P,
        "best_params": state.best_params_P,
    }
    numbers = tensors_of({name: np.float64(getattr(state, name)) for name in _NUMBERS})
    return _snapshot(state, head, {**tensors, **numbers})


def finished_snapshot(state: FineTuneState, head: FittedHead, network: TrainedNetwork) -> Snapshot:
    """The end of fine-tuning: the result in place of what led to it."""
    weights: Tensors = {f"{_WEIGHTS}{name}": tensor for name, tensor in network.weights.items()}
    return _snapshot(state, head, {**weights, _FLATBUFFER: np.frombuffer(network.flatbuffer, np.uint8)})


def from_checkpoint(checkpoint: Checkpoint) -> FineTuneState | None:
    """The state that `to_snapshot` saw; None for a checkpoint of the fit before. Raises `CorruptObject`."""
    tensors, position = checkpoint.tensors, checkpoint.manifest.position
    if position.get("stage") != _STAGE:
        return None
    try:
        base_step = int(str(position["base_step"]))
        vectors = {name: tensors[name].astype(np.float32, copy=False) for name in _VECTORS}
        steps = checkpoint.manifest.step - base_step
        return FineTuneState(
            base_step=base_step,
            optimizer=AdamState(vectors["params"], vectors["mean"], vectors["square"], steps),
            epoch=checkpoint.manifest.epoch,
            step_in_epoch=int(str(position["step_in_epoch"])),
            loss_sum=float(tensors["loss_sum"]),
            accuracy_sum=float(tensors["accuracy_sum"]),
            best_params_P=vectors["best_params"],
            best_epoch=int(str(position["best_epoch"])),
            best_loss=float(tensors["best_loss"]),
            done=bool(position["done"]),
            history=history_of(tensors),
        )
    except (KeyError, ValueError, TypeError, ValidationError) as error:
        raise CorruptObject(f"the checkpoint is not of this kind of fine-tuning: {error}") from error


def finished_network(checkpoint: Checkpoint) -> TrainedNetwork | None:
    """The result, where the checkpoint is a finished fine-tuning's."""
    if _FLATBUFFER not in checkpoint.tensors:
        return None
    weights = {
        name.removeprefix(_WEIGHTS): tensor.astype(np.float32, copy=False)
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(_WEIGHTS)
    }
    return TrainedNetwork(checkpoint.tensors[_FLATBUFFER].tobytes(), weights)


def _snapshot(state: FineTuneState, head: FittedHead, tensors: Tensors) -> Snapshot:
    return Snapshot(
        step=state.step,
        epoch=state.epoch,
        tensors={**tensors, **head.tensors(), **history_tensors(state.history)},
        position={
            "phase": Phase.DONE.value,
            "stage": _STAGE,
            "base_step": state.base_step,
            "step_in_epoch": state.step_in_epoch,
            "best_epoch": state.best_epoch,
            "done": state.done,
        },
    )
