"""The product's side of the comparisons: jobs on the whole local stack, through HTTP, as a user runs them."""

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from services.client import Rekindle
from services.contracts.backbones import BackboneName
from services.contracts.ids import DatasetId
from services.contracts.jobs import ParentVersion, Stage, TrainingJob, TrainingJobSpec, WeightsUri
from services.local.home import StackHome
from services.local.processes import stack_processes
from tests.benchmarks.images import ImageSet
from tests.benchmarks.train.memory import MemoryWatch
from tests.servers.local_stack import running_stack, wait_until_at_rest

JOB_WITHIN_S = 1800.0


@dataclass(frozen=True, slots=True)
class StageRun:
    """One stage of a job."""

    wall_s: float
    compute_s: float
    """Of these, seconds in which its work was being done."""


@dataclass(frozen=True, slots=True)
class JobRun:
    """One job, from its POST until its version answered a prediction."""

    started_s: float
    """Until its first stage began: the queue, and the start of its process."""
    stages: dict[Stage, StageRun]
    between_s: float
    """Between its stages, from the end of one to the beginning of the next."""
    ended_s: float
    """From the end of its last stage until the API said that it had succeeded."""
    wall_s: float
    """From the POST until then."""
    answered_s: float
    """From the POST until its version had answered a prediction."""
    accuracy: float
    """On the test images, 0 to 1."""
    peak_rss_bytes: dict[str, int] = field(default_factory=dict[str, int])
    """By kind of process, of its largest one; empty where it was not watched."""

    @property
    def compute_s(self) -> float:
        """Of all stages."""
        return sum(stage.compute_s for stage in self.stages.values())


@dataclass(slots=True)
class Product:
    """A running stack."""

    client: Rekindle
    home: Path
    backbone: BackboneName
    weights: Path
    _datasets: dict[Path, DatasetId] = field(default_factory=dict[Path, DatasetId])
    """By folder, the newest that was made of it."""
    _newest: dict[Path, ParentVersion] = field(default_factory=dict[Path, ParentVersion])
    """By folder, what the last job on it published."""
    _count: int = 0

    def train(
        self,
        images: ImageSet,
        seed: int,
        *,
        again: bool = False,
        keep_features: bool = False,
        at_once: bool = False,
        watch_memory: bool = False,
        spec: Mapping[str, Any] | None = None,
    ) -> JobRun:
        """A head job with every setting at its default that `spec` does not name, on a dataset that nothing is known
        of.

        With `again` on the dataset that was made of the folder before, which may have grown, and from the version that
        was trained on it last; with `keep_features` its images may have been in others. The stack is at rest before,
        unless the job is to begin `at_once`. `watch_memory` costs some of the time.
        """
        if not (again or keep_features):
            shutil.rmtree(self.home / "bucket" / "features", ignore_errors=True)
        if not at_once:
            self.rest()
        if not again:
            self._count += 1
            made = self.client.datasets.create_from_prefix(f"bench-{self._count}", images.folder.as_uri())
            self._datasets[images.folder] = made.id
        wanted = TrainingJobSpec(
            dataset_id=self._datasets[images.folder],
            backbone=self.backbone,
            weights=WeightsUri(uri=self.weights.as_uri()),
            seed=seed,
            parent=self._newest[images.folder] if again else None,
            **(spec or {}),
        )
        posted_s = time.time()
        memory = MemoryWatch(self._processes)
        with memory if watch_memory else nullcontext():
            job = self.client.training_jobs.create(wanted)
            job = self.client.training_jobs.wait(job.id, timeout_s=JOB_WITHIN_S)
            wall_s = time.time() - posted_s
            self.client.predict(job.model_name, [images.test_image()])
            answered_s = time.time() - posted_s
        assert job.result is not None
        self._newest[images.folder] = ParentVersion(model_name=job.model_name, version=job.result.version)
        return _job_run(job, posted_s, wall_s, answered_s, memory.peaks)

    def rest(self) -> None:
        """Waits until the last job leaves all of the machine to others."""
        wait_until_at_rest(self.home)

    def _processes(self) -> list[psutil.Process]:
        record = StackHome(self.home).read_record()
        assert record is not None
        return stack_processes(record)


@contextmanager
def running_product(home: Path, backbone: BackboneName, weights: Path) -> Iterator[Product]:
    """The stack, from its start to its stop."""
    with running_stack(home) as stack, stack.client() as client:
        yield Product(client, home, backbone, weights)


def _job_run(job: TrainingJob, posted_s: float, wall_s: float, answered_s: float, peaks: dict[str, int]) -> JobRun:
    assert job.result is not None
    assert job.result.accuracy is not None
    stages: dict[Stage, StageRun] = {}
    between_s = 0.0
    before_s = first_s = job.stages[0].started_at.timestamp()
    for timing in job.stages:
        assert timing.finished_at is not None
        assert timing.compute_s is not None
        began_s, ended_s = timing.started_at.timestamp(), timing.finished_at.timestamp()
        between_s += began_s - before_s
        stages[timing.stage] = StageRun(ended_s - began_s, timing.compute_s)
        before_s = ended_s
    return JobRun(
        started_s=first_s - posted_s,
        stages=stages,
        between_s=between_s,
        ended_s=posted_s + wall_s - before_s,
        wall_s=wall_s,
        answered_s=answered_s,
        accuracy=job.result.accuracy,
        peak_rss_bytes=peaks,
    )
