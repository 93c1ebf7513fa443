"""The jobs and job_events tables, for jobs of every kind."""

import re
from collections.abc import Iterable, Sequence

from sqlalchemy import and_, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.errors import NotFound
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import (
    CapacityWait,
    EpochMetrics,
    Failure,
    JobEvent,
    JobEventType,
    JobKind,
    JobRecord,
    JobState,
    Progress,
    PublishedModel,
    StageTiming,
    TrainingJob,
    TrainingJobSpec,
)
from services.contracts.pages import Page
from services.runtime.database.tables import JobEventRow, JobRow
from services.training import cursors
from services.training.reconciler.progress import EventDraft

_ID = re.compile(r"(job|pred)_[0-9a-f]{24}")
_SHOWN = {
    JobKind.TRAIN: ("training job", "/v1/training-jobs"),
    JobKind.PREDICT: ("batch prediction", "/v1/batch-predictions"),
}
"""What users know: what it is called, and where it is listed."""


async def find_row(session: AsyncSession, job_id: str, *, lock: bool = False) -> JobRow | None:
    """A job of any kind, or None; with `lock`, other transactions wait until this one ends."""
    if _ID.fullmatch(job_id) is None:
        return None
    return await session.get(JobRow, job_id, with_for_update=lock, populate_existing=lock)


async def get_row(session: AsyncSession, job_id: str, kind: JobKind = JobKind.TRAIN, *, lock: bool = False) -> JobRow:
    """The row of a job of one of the kinds that users know. Raises `NotFound`, for jobs of other kinds too."""
    row = await find_row(session, job_id, lock=lock)
    if row is None or row.kind != kind:
        what, where = _SHOWN[kind]
        raise NotFound(f"no {what} {job_id!r}: GET {where} lists them", {"job_id": job_id})
    return row


async def list_page(
    session: AsyncSession,
    *,
    limit: int,
    cursor: str | None,
    states: Sequence[JobState] = (),
    model_name: str | None = None,
) -> Page[TrainingJob]:
    """One page of training jobs, newest first."""
    rows, following = await list_rows(
        session, JobKind.TRAIN, limit=limit, cursor=cursor, states=states, model_name=model_name
    )
    return Page[TrainingJob](items=[to_job(row) for row in rows], next_cursor=following)


async def list_rows(
    session: AsyncSession,
    kind: JobKind,
    *,
    limit: int,
    cursor: str | None,
    states: Sequence[JobState],
    model_name: str | None,
) -> tuple[list[JobRow], str | None]:
    """One page of jobs of a kind, newest first, and the cursor of the next."""
    query = select(JobRow).where(JobRow.kind == kind.value)
    if states:
        query = query.where(JobRow.state.in_([state.value for state in states]))
    if model_name is not None:
        query = query.where(JobRow.model_name == model_name)
    if cursor is not None:
        at, key = cursors.decode(cursor)
        query = query.where(or_(JobRow.created_at < at, and_(JobRow.created_at == at, JobRow.id < key)))
    rows = list(await session.scalars(query.order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit + 1)))
    shown = rows[:limit]
    return shown, cursors.encode(shown[-1].created_at, shown[-1].id) if len(rows) > limit else None


async def list_unfinished(session: AsyncSession) -> list[JobRow]:
    """All jobs that have not ended, of every kind, oldest first."""
    unfinished = [state.value for state in JobState if not state.is_terminal]
    query = select(JobRow).where(JobRow.state.in_(unfinished)).order_by(JobRow.created_at, JobRow.id)
    return list(await session.scalars(query))


def trunks_of(rows: Iterable[JobRow]) -> set[TrunkId]:
    """The trunks that these jobs work with, as far as they have them."""
    timings = [StageTiming.model_validate(each) for row in rows for each in row.stages]
    return {timing.trunk_id for timing in timings if timing.trunk_id is not None}


async def list_events(session: AsyncSession, job_id: str, *, after: int, limit: int) -> list[JobEvent]:
    """Events with a greater `seq` than `after`, in order."""
    query = (
        select(JobEventRow)
        .where(JobEventRow.job_id == job_id, JobEventRow.seq > after)
        .order_by(JobEventRow.seq)
        .limit(limit)
    )
    return [_to_event(row) for row in await session.scalars(query)]


async def list_metrics(session: AsyncSession, job_id: str) -> list[EpochMetrics]:
    """The newest report of each epoch, in order of epochs."""
    query = (
        select(JobEventRow.data)
        .where(JobEventRow.job_id == job_id, JobEventRow.type == JobEventType.EPOCH.value)
        .order_by(JobEventRow.seq)
    )
    by_epoch = {epoch.epoch: epoch for epoch in map(EpochMetrics.model_validate, await session.scalars(query))}
    return [by_epoch[epoch] for epoch in sorted(by_epoch)]


def new_row(record: JobRecord) -> JobRow:
    """A queued job's row."""
    spec = record.spec or record.prediction
    return JobRow(
        id=record.job_id,
        kind=record.kind.value,
        dataset_id=record.dataset_id,
        model_name=record.model_name,
        spec=None if spec is None else spec.model_dump(mode="json"),
        record=record.model_dump(mode="json"),
        state=JobState.QUEUED.value,
        attempt=0,
        reason="Accepted.",
        stages=[],
        warnings=[],
        unknown_failures=0,
        infrastructure_failures=0,
        deaths=0,
        progress_mark=-1,
        progress_seq=-1,
        cancel_requested=False,
        event_seq=0,
        created_at=record.created_at,
        updated_at=record.created_at,
    )


def append_events(session: AsyncSession, row: JobRow, drafts: Iterable[EventDraft]) -> None:
    """Adds to the job's history. The row must be locked: `seq` has no gaps and no doubles."""
    for draft in drafts:
        row.event_seq += 1
        session.add(
            JobEventRow(
                job_id=row.id,
                seq=row.event_seq,
                type=draft.type.value,
                at=draft.at,
                attempt=draft.attempt,
                state=draft.state.value,
                message=draft.message,
                data=draft.data,
            )
        )


def to_job(row: JobRow) -> TrainingJob:
    """The row as the API shows it."""
    stages = [StageTiming.model_validate(each) for each in row.stages]
    choices = [each.backbone_choice for each in stages if each.backbone_choice is not None]
    return TrainingJob(
        id=JobId(row.id),
        spec=TrainingJobSpec.model_validate(row.spec, extra="ignore"),
        model_name=row.model_name,
        state=JobState(row.state),
        attempt=row.attempt,
        submission_id=row.submission_id,
        progress=None if row.progress is None else Progress.model_validate(row.progress),
        waiting=None if row.waiting is None else CapacityWait.model_validate(row.waiting),
        metrics=None if row.metrics is None else EpochMetrics.model_validate(row.metrics),
        stages=stages,
        backbone_choice=choices[-1] if choices else None,
        result=None if row.result is None else PublishedModel.model_validate(row.result),
        failure=None if row.failure is None else Failure.model_validate(row.failure),
        warnings=list(row.warnings),
        reason=row.reason,
        created_at=row.created_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
    )


def _to_event(row: JobEventRow) -> JobEvent:
    return JobEvent(
        seq=row.seq,
        type=JobEventType(row.type),
        at=row.at,
        attempt=row.attempt,
        state=JobState(row.state),
        message=row.message,
        data=row.data,
    )
