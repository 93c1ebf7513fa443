"""Starts the fit, and fine-tuning after it, and waits for it. The driver's side: no TensorFlow.

The fit runs in a trainer (`trainer`), and leaves its result in the bucket as the job's finished checkpoint: a fit that
ended while the driver was lost is not repeated. For its first half minute the driver itself supervises it
(`supervise`); most fits of a head are over by then. For a longer one Ray Train is started, whose six processes take
their time: its one worker finds the fit running, and supervises it from then on in the driver's place. The worker runs
on the driver's node, so spot nodes hold nothing but trainers, and Ray Train starts another when it is lost, which finds
the fit still running. Ray's own checkpoints are not used: `storage_path` holds nothing but Ray Train's notes about the
run and may be a local folder on every node.
"""

import logging
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import ray

from ray_cluster.train.failures import AttemptFailed, unwrap
from ray_cluster.train.fit_job import FitEnd, FitJob, FitReturn
from ray_cluster.train.supervise import Relieved, Supervisor, ray_train_after_s, supervise
from services.contracts.errors import Fenced
from services.runtime.objects import open_store

_log = logging.getLogger(__name__)

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


def fit(job: FitJob) -> FitReturn:
    """Trains the job's stage until done; `finished` then finds the result.

    Raises `AttemptFailed`, `Fenced`, and Ray's errors for lost machines.
    """
    returned = _supervise_at_first(job) if ray_train_after_s() > 0 else _run_ray_train(job)
    if returned.end is FitEnd.GIVEN_UP:
        raise Fenced(f"attempt {job.attempt} of {job.job_id} was given up while it was training")
    if returned.failure is not None:
        raise AttemptFailed(returned.failure)
    return returned


def _supervise_at_first(job: FitJob) -> FitReturn:
    """Until the fit has ended, or Ray Train's worker has taken over, and then until that has heard of the end."""
    ray_train = _RayTrain(job)
    try:
        return Supervisor(open_store(job.bucket_uri), job, on_long=ray_train.start).run()
    except Relieved as relieved:
        if ray_train.run is None:
            raise Fenced(f"another supervises attempt {job.attempt} of {job.job_id}") from relieved
        return ray_train.run.result()


class _RayTrain:
    """Ray Train beside the driver's own supervision, in a thread that the process waits for before it exits.

    Where the fit ends before Ray Train has started, its worker finds that nothing is left to do.
    """

    def __init__(self, job: FitJob) -> None:
        self._job = job
        self.run: Future[FitReturn] | None = None
        """Null before the start."""

    def start(self) -> None:
        """Returns at once."""
        _log.info("the fit is a long one: starting Ray Train")
        executor = ThreadPoolExecutor(1, "ray-train")
        self.run = executor.submit(_run_ray_train, self._job)
        self.run.add_done_callback(_warn_of_failure)
        executor.shutdown(wait=False)


def _warn_of_failure(run: "Future[FitReturn]") -> None:
    error = run.exception()
    if error is not None:
        _log.warning("Ray Train failed; where it has not taken over, training goes on without it", exc_info=error)


def _run_ray_train(job: FitJob) -> FitReturn:
    os.environ.update(_RAY_TRAIN_ENVIRONMENT)  # read by Ray Train when it is imported, and handed to its processes
    # ray.train takes seconds to import, and most stages of most attempts do without it.
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
