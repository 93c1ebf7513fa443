"""Carries out what the policy decided about one job. Every step may be repeated, by this leader or the next."""

import asyncio
import shlex
import time
from dataclasses import dataclass, field
from datetime import datetime

import structlog

from services.contracts.batch_predictions import BatchResult
from services.contracts.ids import JobId, is_spare, submission_id
from services.contracts.jobs import Failure, JobKind, JobOutcome, JobState, PublishedModel
from services.runtime.database.tables import JobRow
from services.training.context import Training
from services.training.ray_api import Submission
from services.training.reconciler import measures, records, spare, transitions
from services.training.reconciler.policy import SILENCE, Action, Cancel, Fail, Retry, Rouse, Stop, Submit, Succeed, Wait
from services.training.reconciler.spare import SpareKeeper, ray_job_of
from services.training.reconciler.transitions import LeasedDatabase

STOP_INTERVAL_S = 5.0
"""How often the cluster is asked to stop the same attempt."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Actor:
    """Acts for the holder of the lease."""

    training: Training
    leased: LeasedDatabase
    spares: SpareKeeper
    stop_again_at_s: dict[str, float] = field(default_factory=dict[str, float])
    rouse_again_at_s: dict[str, float] = field(default_factory=dict[str, float])

    async def act(self, row: JobRow, action: Action, now: datetime) -> bool:
        """Carries the action out; whether the job changed.

        Raises:
            Fenced: the lease is another's by now, or a newer leader is ahead with this job.
            ClusterUnavailable, ObjectStoreUnavailable, DatabaseUnavailable: the next look tries again.
        """
        match action:
            case Wait(state=state, reason=reason):
                return await self._wait(row, state, reason, now)
            case Submit():
                return await self._submit(row, action, now)
            case Rouse(state=state, reason=reason):
                return await self._wait(row, state, reason, now) or await self._rouse(row, now)
            case Stop(reason=reason):
                return await self._stop(row, reason, now)
            case Retry():
                log.info("job.retry", job_id=row.id, attempt=row.attempt, reason=action.reason)
                return await transitions.retry(self.leased, row, action, now)
            case Succeed(made=made):
                if isinstance(made, PublishedModel):
                    return await self._publish(row, made, now)
                return await self._finish_prediction(row, made, now)
            case Fail(failure=failure):
                await self._record_end(row, JobState.FAILED, now, failure=failure)
                log.info("job.failed", job_id=row.id, attempt=row.attempt, code=failure.code, reason=failure.message)
                return await transitions.fail(self.leased, row, failure, now)
            case Cancel(reason=reason):
                return await self._cancel(row, reason, now)

    async def _wait(self, row: JobRow, state: JobState, reason: str, now: datetime) -> bool:
        if not reason or (state.value == row.state and reason == row.reason):
            return False
        return await transitions.wait(self.leased, row, state, reason, now)

    async def _submit(self, row: JobRow, action: Submit, now: datetime) -> bool:
        job_id, ray_job = JobId(row.id), ray_job_of(row)
        if action.attempt > row.attempt:
            taken = None if row.kind == JobKind.IMPORT_BASE else self.spares.take()
            ray_job = taken or submission_id(job_id, action.attempt)
            # The number is taken before the cluster hears of it: there can be no attempt that nobody knows of.
            if not await self._begin(row, action.attempt, ray_job, action.reason, now):
                return False
        if await self._start(row, action.attempt, ray_job, now, again=action.attempt == row.attempt):
            log.info("job.submitted", job_id=job_id, attempt=action.attempt, submission_id=ray_job)
        # That the cluster has it is noted at the next look, when the cluster says so itself.
        return True

    async def _start(self, row: JobRow, attempt: int, ray_job: str, now: datetime, *, again: bool) -> bool:
        """Has the cluster run the attempt that was begun; again, where that may have been done before. False: a later
        attempt follows."""
        store = self.training.store
        if not await asyncio.to_thread(records.raise_fence, store, JobId(row.id), attempt):
            await self._catch_up(row, now)
            return False
        if not is_spare(ray_job):
            await self.training.ray.submit(self._submission(row, attempt))
        elif not await asyncio.to_thread(spare.give, store, ray_job, JobId(row.id), attempt):
            await self._begin_alone(row, attempt, now)
            return False
        elif again:
            await self.training.ray.submit(spare.submission(store.uri, ray_job))
        return True

    async def _begin(self, row: JobRow, attempt: int, ray_job: str, reason: str, now: datetime) -> bool:
        if not await transitions.begin_attempt(self.leased, row, attempt, ray_job, reason, now):
            return False
        measures.count_attempt(row)
        self.training.changed.send()
        return True

    async def _begin_alone(self, row: JobRow, attempt: int, now: datetime) -> None:
        """The spare driver that was to run the attempt runs another, or was let go: one with a Ray job of its own
        follows."""
        reason = f"The driver of attempt {attempt} is gone; attempt {attempt + 1} follows."
        await self._begin(row, attempt + 1, submission_id(JobId(row.id), attempt + 1), reason, now)

    async def _rouse(self, row: JobRow, now: datetime) -> bool:
        """Submits what the cluster has already: that changes nothing, and a head that was restarted since begins to
        look after its jobs, finds the dead ones, and says so at a later look.

        A spare driver is given its attempt as well: whoever was to do that may have died before."""
        if time.monotonic() < self.rouse_again_at_s.get(row.id, 0.0):
            return False
        if not await self._start(row, row.attempt, ray_job_of(row), now, again=True):
            return True
        self.rouse_again_at_s[row.id] = time.monotonic() + SILENCE.total_seconds()
        log.info("job.silent", job_id=row.id, attempt=row.attempt)
        return False

    def _submission(self, row: JobRow, attempt: int) -> Submission:
        job_id = JobId(row.id)
        return Submission(
            submission_id=submission_id(job_id, attempt),
            entrypoint=(
                f"python -m ray_cluster.train.attempt --bucket {shlex.quote(self.training.store.uri)} "
                f"--job {job_id} --attempt {attempt}"
            ),
            metadata={
                "name": f"{row.model_name} {job_id}",
                "job_id": job_id,
                "model_name": row.model_name,
                "attempt": str(attempt),
            },
        )

    async def _catch_up(self, row: JobRow, now: datetime) -> None:
        """The bucket knows a newer attempt. Where another leader is ahead, this raises `Fenced`; otherwise the database
        has lost some history, and the job goes on with a number that nobody has used."""
        unused = await asyncio.to_thread(records.read_fence, self.training.store, JobId(row.id)) + 1
        reason = f"The bucket knows of attempt {unused - 1}, the database does not; attempt {unused} follows."
        log.warning("job.database_behind", job_id=row.id, attempt=row.attempt, next_attempt=unused)
        await self._begin(row, unused, submission_id(JobId(row.id), unused), reason, now)

    async def _stop(self, row: JobRow, reason: str, now: datetime) -> bool:
        if time.monotonic() < self.stop_again_at_s.get(row.id, 0.0):
            return False
        await self.training.ray.stop(ray_job_of(row))
        self.stop_again_at_s[row.id] = time.monotonic() + STOP_INTERVAL_S
        return await transitions.wait(self.leased, row, JobState.CANCELLING, reason, now)

    async def _publish(self, row: JobRow, published: PublishedModel, now: datetime) -> bool:
        manifest = await asyncio.to_thread(records.read_manifest, self.training.store, published)
        await self._record_end(row, JobState.SUCCEEDED, now, published=published)
        log.info("job.succeeded", job_id=row.id, attempt=row.attempt, version=published.version)
        shown = await transitions.succeed(self.leased, row, manifest, published, now)
        self.training.published.send()
        return shown

    async def _finish_prediction(self, row: JobRow, predicted: BatchResult, now: datetime) -> bool:
        await self._record_end(row, JobState.SUCCEEDED, now, predicted=predicted)
        log.info("job.succeeded", job_id=row.id, attempt=row.attempt, images=predicted.image_count)
        return await transitions.finish_prediction(self.leased, row, predicted, now)

    async def _cancel(self, row: JobRow, reason: str, now: datetime) -> bool:
        # A submission that is still on its way must find itself given up.
        await asyncio.to_thread(records.raise_fence, self.training.store, JobId(row.id), row.attempt + 1)
        await self._record_end(row, JobState.CANCELLED, now)
        self.stop_again_at_s.pop(row.id, None)
        log.info("job.cancelled", job_id=row.id, attempt=row.attempt)
        return await transitions.cancel(self.leased, row, reason, now)

    async def _record_end(
        self,
        row: JobRow,
        state: JobState,
        now: datetime,
        *,
        published: PublishedModel | None = None,
        failure: Failure | None = None,
        predicted: BatchResult | None = None,
    ) -> None:
        """Into the bucket before the database: a job that ended for its user has ended after a restore, too."""
        outcome = JobOutcome(
            job_id=JobId(row.id),
            state=state,
            attempt=row.attempt,
            finished_at=now,
            published=published,
            failure=failure,
            predicted=predicted,
        )
        await asyncio.to_thread(records.write_job_outcome, self.training.store, outcome)
