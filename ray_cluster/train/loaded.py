"""A job's loop in this process, loaded once: to run it, or to compute shards of it for another trainer.

Loading takes longer than most steps: features and, for fine-tuning, a network that TensorFlow has yet to compile. So a
standby loads the job that it stands by for, and goes on with that when it is needed.
"""

import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

from ray_cluster.train import head_loop
from ray_cluster.train.fit_job import FitJob
from ray_cluster.train.shards import Compute, ShardMap, ShardResult, ShardTask, compute_here
from ray_cluster.train.training_loop import TrainingLoop
from services.contracts.jobs import Stage
from services.runtime.objects import open_store


class LoadedLoop:
    """What a job's stage trains on, set up for training: the same in every trainer of the job, for all attempts.

    Safe to call from several threads, one of which uses the loop at a time.
    """

    def __init__(self, job: FitJob) -> None:
        """Loads nothing yet."""
        self.job = job
        self._lock = threading.Lock()
        self._relay = _Relay()
        self._loop: TrainingLoop[Any] | None = None

    @property
    def is_loaded(self) -> bool:
        """Whether running it could begin at once."""
        return self._loop is not None

    def load(self) -> None:
        """Reads and compiles whatever that needs. Raises as reading from the bucket does; the next call tries again."""
        with self._lock:
            self._loaded()

    @contextmanager
    def running(self, map_shards: ShardMap) -> Generator[TrainingLoop[Any]]:
        """The loop, loaded, for this caller alone; its shards are computed through `map_shards`.

        Afterwards it is gone, and what the process kept for it with it.
        """
        with self._lock:
            loop = self._loaded()
            self._relay.map_shards = map_shards
            try:
                yield loop
            finally:
                self._loop = None
                loop.close()

    def compute(self, task: ShardTask, shards: Sequence[int]) -> list[ShardResult]:
        """These shards' results, in order."""
        with self._lock:
            loop = self._loaded()
            return [loop.compute(task, shard) for shard in shards]

    def _loaded(self) -> TrainingLoop[Any]:
        if self._loop is None:
            loop = _load(self.job, self._relay)
            loop.warm_up()
            self._loop = loop
        return self._loop


class _Relay:
    """A `ShardMap` that is another one from some moment on."""

    def __init__(self) -> None:
        self.map_shards: ShardMap = compute_here

    def __call__(self, task: ShardTask, count: int, compute: Compute) -> list[ShardResult]:
        return self.map_shards(task, count, compute)


def _load(job: FitJob, map_shards: ShardMap) -> TrainingLoop[Any]:
    store = open_store(job.bucket_uri)
    if job.stage is not Stage.FINE_TUNE:
        return head_loop.load(store, job, map_shards)
    from ray_cluster.train import fine_tune  # noqa: PLC0415 - TensorFlow

    return fine_tune.load(store, job, map_shards)
