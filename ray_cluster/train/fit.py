"""Starts the fit, and fine-tuning after it, and waits for it. The driver's side: no TensorFlow.

The fit runs in a trainer (`trainer`), and leaves its result in the bucket as the job's finished checkpoint: a fit that
ended while the driver was lost is not repeated. For its first half minute the driver itself supervises it
(`supervise`); most fits of a head are over by then. A longer one goes on under Ray Train, whose six processes are
started meanwhile: its one worker finds the fit running and supervises it from then on. The worker runs on the driver's
node, so spot nodes hold nothing but trainers, and Ray Train starts another when it is lost, which finds the fit still
running. Ray's own checkpoints are not used: `storage_path` holds nothing but Ray Train's notes about the run and may be
a local folder on every node.
"""

import os
import tempfile
from typing import Any

import ray

from ray_cluster.train import checkpoints, fine_tune_state, fit_state
from ray_cluster.train.checkpoints import Checkpoint
from ray_cluster.train.failures import AttemptFailed, unwrap
from ray_cluster.train.fit_job import FitEnd, FitJob, FitReturn
from ray_cluster.train.fit_state import FittedHead
from ray_cluster.train.supervise import ray_train_after_s, supervise, supervise_while_short
from ray_cluster.vision.network_tails import TrainedNetwork
from services.contracts.errors import Fenced
from services.contracts.ids import JobId
from services.runtime.objects import ObjectStore

MAX_WORKER_LOSSES = 10
"""Worker processes lost without notice after which the attempt ends; the job then starts another, with backoff."""

_SLIVER = 0.001
"""Of a resource: enough to be placed by it, and room for many."""

_RAY_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # the supervisor looks for notices itself; a process of 150 MB
}


def find_finished(store: ObjectStore, job_id: JobId) -> tuple[Checkpoint, FittedHead] | None:
    """The job's finished fit, whichever attempt did it, or None."""
    checkpoint = checkpoints.load_newest(store, job_id)
    head = None if checkpoint is None else fit_state.finished_head(checkpoint)
    return None if checkpoint is None or head is None else (checkpoint, head)


def find_fine_tuned(store: ObjectStore, job_id: JobId) -> tuple[Checkpoint, TrainedNetwork] | None:
    """The job's finished fine-tuning, whichever attempt did it, or None."""
    checkpoint = checkpoints.load_newest(store, job_id)
    network = None if checkpoint is None else fine_tune_state.finished_network(checkpoint)
    return None if checkpoint is None or network is None else (checkpoint, network)


def fit(job: FitJob) -> FitReturn:
    """Trains the job's stage until done; `find_finished`, or `find_fine_tuned`, then finds the result.

    Raises `AttemptFailed`, `Fenced`, and Ray's errors for lost machines.
    """
    returned = supervise_while_short(job) if ray_train_after_s() > 0 else None
    if returned is None:
        returned = _run_trainer(job)
    if returned.end is FitEnd.GIVEN_UP:
        raise Fenced(f"attempt {job.attempt} of {job.job_id} was given up while it was training")
    if returned.failure is not None:
        raise AttemptFailed(returned.failure)
    return returned


def _run_trainer(job: FitJob) -> FitReturn:
    os.environ.update(_RAY_TRAIN_ENVIRONMENT)  # read by Ray Train when it is imported, and handed to its processes
    # ray.train takes seconds to import, and most stages of most attempts do without.
    from ray.train import FailureConfig, RunConfig, ScalingConfig  # noqa: PLC0415
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer  # noqa: PLC0415
    from ray.train.v2.api.exceptions import TrainingFailedError  # noqa: PLC0415

    with tempfile.TemporaryDirectory(prefix="rekindle-") as notes:
        trainer = DataParallelTrainer(
            _train_loop,
            train_loop_config={"job": job.model_dump_json()},
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={_this_node(): _SLIVER}),
            run_config=RunConfig(
                name=f"{job.job_id}-a{job.attempt}-{job.stage}",
                storage_path=notes,
                failure_config=FailureConfig(max_failures=MAX_WORKER_LOSSES),
            ),
        )
        try:
            result = trainer.fit()
        except TrainingFailedError as error:
            raise unwrap(error) from error
    return FitReturn.model_validate_json(str(result.return_value))


def _this_node() -> str:
    """The resource that only this node has."""
    return f"node:{ray.util.get_node_ip_address()}"


def _train_loop(config: dict[str, Any]) -> str:
    """Runs in the worker's process."""
    return supervise(FitJob.model_validate_json(config["job"])).model_dump_json()
