"""The reconciler's writes to the database. Each is one transaction, holds the lease, and does nothing to a job that has
changed since it was looked at: another look follows."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.batch_predictions import BatchResult
from services.contracts.jobs import (
    CapacityWait,
    EpochMetrics,
    Failure,
    JobState,
    Progress,
    ProgressRecord,
    PublishedModel,
    StageTiming,
)
from services.contracts.models import ModelManifest
from services.runtime.database import Database
from services.runtime.database.leases import Lease, guard
from services.runtime.database.tables import JobRow
from services.training.jobs import queries
from services.training.models.queries import insert_version
from services.training.reconciler.policy import Retry
from services.training.reconciler.progress import JobProgress, fold, state_event


@dataclass(frozen=True, slots=True)
class LeasedDatabase:
    """The database, as the holder of the lease may write to it."""

    database: Database
    lease: Lease

    @asynccontextmanager
    async def job(self, seen: JobRow) -> AsyncGenerator[tuple[AsyncSession, JobRow | None], None]:
        """A transaction with the job's row, or with None when the row has changed since `seen`.

        Raises `Fenced` when the lease is another's by now.
        """
        async with self.database.transaction() as session:
            await guard(session, self.lease)
            row = await queries.find_row(session, seen.id, lock=True)
            changed = row is None or _version(row) != _version(seen)
            yield session, None if changed else row


def _version(row: JobRow) -> tuple[object, ...]:
    """Changes with everything that a decision is based on. Every write adds an event or changes one of the others."""
    return (row.event_seq, row.attempt, row.progress_seq, row.submitted_at, row.retry_at, row.cancel_requested)


async def take_over(leased: LeasedDatabase, seen: JobRow, records: Sequence[ProgressRecord], now: datetime) -> bool:
    """Applies an attempt's records to its job, each exactly once."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        progress = _progress_of(row)
        for record in records:
            progress, events = fold(progress, record)
            queries.append_events(session, row, events)
        if progress.mark > row.progress_mark:
            # It got further than ever before: what went wrong until here is no pattern.
            row.infrastructure_failures = 0
            row.deaths = 0
        if progress.waiting is not None:
            row.reason = progress.waiting.sentence
        elif row.waiting is not None:
            row.reason = records[-1].message
        write_progress(row, progress)
        row.progress_seq = max(record.seq for record in records)
        row.updated_at = now
        return True


async def mark_submitted(leased: LeasedDatabase, seen: JobRow, now: datetime) -> bool:
    """The cluster has the attempt."""
    async with leased.job(seen) as (_, row):
        if row is None:
            return False
        row.submitted_at = now
        return True


async def wait(leased: LeasedDatabase, seen: JobRow, state: JobState, reason: str, now: datetime) -> bool:
    """Another state or only another reason."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        if state is not JobState(row.state):
            _move(session, row, state, reason, now)
        row.reason = reason
        row.updated_at = now
        return True


async def begin_attempt(
    leased: LeasedDatabase, seen: JobRow, attempt: int, ray_job: str, reason: str, now: datetime
) -> bool:
    """Commits to an attempt, under a Ray submission id, before it is submitted, so that a successor submits the same
    one."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        row.attempt = attempt
        row.submission_id = ray_job
        row.submitted_at = None
        row.retry_at = None
        row.progress_seq = -1
        row.progress = None
        _move(session, row, JobState.QUEUED, reason, now)
        return True


async def retry(leased: LeasedDatabase, seen: JobRow, action: Retry, now: datetime) -> bool:
    """The attempt is over; another one follows."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        row.retry_at = action.at
        row.unknown_failures = action.unknown_failures
        row.infrastructure_failures = action.infrastructure_failures
        row.deaths = action.deaths
        _move(session, row, action.state, action.reason, now)
        return True


async def succeed(
    leased: LeasedDatabase, seen: JobRow, manifest: ModelManifest, published: PublishedModel, now: datetime
) -> bool:
    """The version is shown and the job has ended, both or neither."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        await insert_version(session, manifest)
        row.result = published.model_dump(mode="json")
        reason = f"Published version {published.version} of model {published.model_name!r}."
        _end(session, row, JobState.SUCCEEDED, reason, now)
        return True


async def finish_prediction(leased: LeasedDatabase, seen: JobRow, result: BatchResult, now: datetime) -> bool:
    """Every image has its labels."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        row.result = result.model_dump(mode="json")
        _end(session, row, JobState.SUCCEEDED, result.sentence, now)
        return True


async def fail(leased: LeasedDatabase, seen: JobRow, failure: Failure, now: datetime) -> bool:
    """The job has ended without a result."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        row.failure = failure.model_dump(mode="json")
        _end(session, row, JobState.FAILED, failure.message, now)
        return True


async def cancel(leased: LeasedDatabase, seen: JobRow, reason: str, now: datetime) -> bool:
    """The job has ended because it was asked to."""
    async with leased.job(seen) as (session, row):
        if row is None:
            return False
        _end(session, row, JobState.CANCELLED, reason, now)
        return True


def _end(session: AsyncSession, row: JobRow, state: JobState, reason: str, now: datetime) -> None:
    row.finished_at = now
    row.retry_at = None
    _move(session, row, state, reason, now)


def _move(session: AsyncSession, row: JobRow, state: JobState, reason: str, now: datetime) -> None:
    event = state_event(JobState(row.state), state, now, row.attempt, reason)
    row.state = state.value
    row.reason = reason
    row.waiting = None
    row.updated_at = now
    queries.append_events(session, row, [event])


def _progress_of(row: JobRow) -> JobProgress:
    return JobProgress(
        state=JobState(row.state),
        progress=None if row.progress is None else Progress.model_validate(row.progress),
        waiting=None if row.waiting is None else CapacityWait.model_validate(row.waiting),
        metrics=None if row.metrics is None else EpochMetrics.model_validate(row.metrics),
        stages=tuple(StageTiming.model_validate(each) for each in row.stages),
        warnings=tuple(row.warnings),
        mark=row.progress_mark,
    )


def write_progress(row: JobRow, progress: JobProgress) -> None:
    """Puts what the reports say into the job's row."""
    row.state = progress.state.value
    row.progress = None if progress.progress is None else progress.progress.model_dump(mode="json")
    row.waiting = None if progress.waiting is None else progress.waiting.model_dump(mode="json")
    row.metrics = None if progress.metrics is None else progress.metrics.model_dump(mode="json")
    row.stages = [each.model_dump(mode="json") for each in progress.stages]
    row.warnings = list(progress.warnings)
    row.progress_mark = progress.mark
