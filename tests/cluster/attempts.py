"""Runs attempts against a bucket and a Ray cluster the way the reconciler does, and reads what they leave."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2

from ray_cluster.vision.engines import Engine, load_engine
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.batch_predictions import BatchPredictionSpec, BatchResult
from services.contracts.errors import NotFound
from services.contracts.ids import DatasetId, JobId, new_batch_prediction_id, new_job_id, submission_id
from services.contracts.jobs import (
    AttemptOutcome,
    BaseModelSpec,
    Fence,
    JobEventType,
    JobKind,
    JobOutcome,
    JobRecord,
    JobState,
    ProgressRecord,
    Stage,
    StageTiming,
    TrainingJobSpec,
)
from services.contracts.models import EngineChoice, ModelManifest, TrunkManifest
from services.contracts.spare import SpareDriver
from services.runtime.objects import ObjectStore, open_store
from tests.servers.ray_environment import ROOT
from tests.servers.ray_local import LocalRay
from tests.servers.ray_nodes import RayNodes

ATTEMPT_TIMEOUT_S = 240
DATASET = DatasetId("ds_cluster")


@dataclass(frozen=True, slots=True)
class Attempts:
    """A bucket and a cluster."""

    ray: LocalRay | RayNodes
    bucket_uri: str

    @property
    def store(self) -> ObjectStore:
        return open_store(self.bucket_uri)

    def accept(self, source: Path, model_name: str, **spec: object) -> JobId:
        """A training job as the gateway leaves it."""
        wanted = TrainingJobSpec.model_validate({"dataset_id": DATASET, "backbone": "rekindle_tiny", **spec})
        record = JobRecord(
            job_id=new_job_id(), kind=JobKind.TRAIN, model_name=model_name, created_at=utc_now(), spec=wanted,
            source_uri=source.as_uri(),
        )  # fmt: skip
        return self._write(record)

    def accept_base(self, base: BaseModelSpec) -> JobId:
        record = JobRecord(
            job_id=new_job_id(), kind=JobKind.IMPORT_BASE, model_name="base", created_at=utc_now(), spec=None,
            source_uri=None, base=base,
        )  # fmt: skip
        return self._write(record)

    def accept_prediction(self, source: Path, model: ModelManifest, **spec: object) -> JobId:
        """A batch prediction as the gateway leaves it."""
        asked = {"model_name": model.model_name, "source": {"type": "prefix", "uri": source.as_uri()}, **spec}
        record = JobRecord(
            job_id=new_batch_prediction_id(), kind=JobKind.PREDICT, model_name=model.model_name,
            model_version=model.version, created_at=utc_now(), spec=None, source_uri=source.as_uri(),
            prediction=BatchPredictionSpec.model_validate(asked),
        )  # fmt: skip
        return self._write(record)

    def fence(self, job: JobId, attempt: int) -> None:
        self.store.put(names.job_fence(job), Fence(attempt=attempt).model_dump_json().encode())

    def end(self, job: JobId) -> None:
        """Notes that the job was cancelled, as the reconciler does."""
        outcome = JobOutcome(
            job_id=job, state=JobState.CANCELLED, attempt=1, finished_at=utc_now(), published=None, failure=None
        )
        self.store.put(names.job_outcome(job), outcome.model_dump_json().encode())

    def start(self, job: JobId, attempt: int = 1, *, short_fit_s: float | None = None) -> subprocess.Popen[bytes]:
        """The attempt's driver, as a process of ours. `short_fit_s`: how long a fit may be without Ray Train."""
        self.fence(job, attempt)
        command = [sys.executable, "-m", "ray_cluster.train.attempt", *self._arguments(job, attempt)]
        short = {} if short_fit_s is None else {"REKINDLE_RAY_TRAIN_AFTER_S": str(short_fit_s)}
        environment = {**self.ray.env, **short}
        with self._log_path(job, attempt).open("wb") as log:
            return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def start_spare(self, spare_id: str, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """A spare driver, as a process of ours; the newest there is."""
        newest = SpareDriver(submission_id=spare_id).model_dump_json().encode()
        self.store.put(names.spare_driver(), newest)
        command = [sys.executable, "-m", "ray_cluster.train.spare", "--bucket", self.bucket_uri, "--id", spare_id]
        return subprocess.Popen(command, env={**self.ray.env, **environment}, cwd=ROOT)

    @contextlib.contextmanager
    def begun(self, job: JobId, attempt: int = 1) -> Iterator[subprocess.Popen[bytes]]:
        """The attempt's driver, killed at the end of the block."""
        process = self.start(job, attempt)
        try:
            yield process
        finally:
            kill(process)

    def run(self, job: JobId, attempt: int = 1) -> int:
        """The attempt to its end; the exit code."""
        process = self.start(job, attempt)
        try:
            return process.wait(ATTEMPT_TIMEOUT_S)
        finally:
            process.kill()

    def submit(self, job: JobId, attempt: int = 1) -> str:
        """The attempt to its end as a Ray job; its status."""
        self.fence(job, attempt)
        jobs_url = f"{self.ray.dashboard_url}/api/jobs/"
        entrypoint = f"{sys.executable} -m ray_cluster.train.attempt {' '.join(self._arguments(job, attempt))}"
        submission = {"entrypoint": entrypoint, "submission_id": submission_id(job, attempt)}
        httpx2.post(jobs_url, json=submission, timeout=60).raise_for_status()
        status = ""

        def ended() -> bool:
            nonlocal status
            status = httpx2.get(f"{jobs_url}{submission_id(job, attempt)}", timeout=60).json()["status"]
            return status in ("SUCCEEDED", "FAILED", "STOPPED")

        wait_until(ended)
        return status

    def job_logs(self, job: JobId, attempt: int = 1) -> str:
        answer = httpx2.get(f"{self.ray.dashboard_url}/api/jobs/{submission_id(job, attempt)}/logs", timeout=60)
        return answer.json()["logs"]

    def log(self, job: JobId, attempt: int = 1) -> str:
        return self._log_path(job, attempt).read_text(errors="replace")

    def outcome(self, job: JobId, attempt: int = 1) -> AttemptOutcome | None:
        try:
            return AttemptOutcome.model_validate_json(self.store.get(names.attempt_outcome(job, attempt)))
        except NotFound:
            return None

    def model(self, job: JobId, attempt: int = 1) -> ModelManifest:
        outcome = self.outcome(job, attempt)
        assert outcome is not None, self.log(job, attempt)
        assert outcome.published is not None, outcome.failure
        key = names.model_manifest(outcome.published.model_name, outcome.published.version)
        return ModelManifest.model_validate_json(self.store.get(key))

    def predicted(self, job: JobId, attempt: int = 1) -> BatchResult:
        outcome = self.outcome(job, attempt)
        assert outcome is not None, self.log(job, attempt)
        assert outcome.predicted is not None, outcome.failure
        return outcome.predicted

    def engine(self, job: JobId, trunk: TrunkManifest) -> Engine:
        """What ran the trunk in the job."""
        chosen = EngineChoice.model_validate_json(self.store.get(names.job_engine(job)))
        return load_engine(self.store, trunk, chosen.engine)

    def records(self, job: JobId, attempt: int = 1) -> list[ProgressRecord]:
        prefix = names.attempt_progress_prefix(job, attempt)
        return [ProgressRecord.model_validate_json(self.store.get(info.key)) for info in self.store.list(prefix)]

    def stages(self, job: JobId, attempt: int = 1) -> dict[Stage, StageTiming]:
        """The stages that ended, in order."""
        timings = [
            StageTiming.model_validate(record.data)
            for record in self.records(job, attempt)
            if record.type is JobEventType.STAGE
        ]
        return {timing.stage: timing for timing in timings if timing.finished_at is not None}

    def has_begun(self, job: JobId, attempt: int, stage: Stage) -> bool:
        return any(record.stage is stage for record in self.records(job, attempt))

    def _arguments(self, job: JobId, attempt: int) -> list[str]:
        return ["--bucket", self.bucket_uri, "--job", job, "--attempt", str(attempt)]

    def _log_path(self, job: JobId, attempt: int) -> Path:
        return self.ray.temp_dir / f"{job}-{attempt}.log"

    def _write(self, record: JobRecord) -> JobId:
        self.store.put(names.job_spec(record.job_id), record.model_dump_json().encode())
        return record.job_id


def wait_until(true: Callable[[], object], timeout_s: float = ATTEMPT_TIMEOUT_S) -> None:
    """Polls, and fails when it takes too long."""
    deadline = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def kill(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL, as a vanishing machine would."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
