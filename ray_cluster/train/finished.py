"""What a stage of training left when it was done: its last checkpoint, whichever attempt wrote it."""

from ray_cluster.train import checkpoints, fine_tune_state, fit_state
from ray_cluster.train.checkpoints import Checkpoint
from ray_cluster.train.fit_state import FittedHead
from ray_cluster.vision.network_tails import TrainedNetwork
from services.contracts.ids import JobId
from services.contracts.jobs import Stage
from services.runtime.objects import ObjectStore


def find_head(store: ObjectStore, job_id: JobId) -> tuple[Checkpoint, FittedHead] | None:
    """The job's finished fit, or None."""
    checkpoint = checkpoints.load_newest(store, job_id)
    head = None if checkpoint is None else fit_state.finished_head(checkpoint)
    return None if checkpoint is None or head is None else (checkpoint, head)


def find_network(store: ObjectStore, job_id: JobId) -> tuple[Checkpoint, TrainedNetwork] | None:
    """The job's finished fine-tuning, or None."""
    checkpoint = checkpoints.load_newest(store, job_id)
    network = None if checkpoint is None else fine_tune_state.finished_network(checkpoint)
    return None if checkpoint is None or network is None else (checkpoint, network)


def is_finished(checkpoint: Checkpoint | None, stage: Stage) -> bool:
    """Whether the stage's result is in the job's newest checkpoint."""
    if checkpoint is None:
        return False
    if stage is Stage.FINE_TUNE:
        return fine_tune_state.finished_network(checkpoint) is not None
    return fit_state.finished_head(checkpoint) is not None
