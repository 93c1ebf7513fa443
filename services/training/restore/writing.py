"""Writes what the bucket holds into the database. Each function is part of one transaction and may be repeated: what is
there stays, unless the bucket has it further on."""

from enum import StrEnum

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.aliases import AliasRecord
from services.contracts.datasets import Dataset, DatasetState
from services.contracts.jobs import JobState
from services.runtime.database.tables import DatasetRow, JobEventRow, JobRow, ModelAliasRow, ModelVersionRow
from services.training.datasets import queries as dataset_queries
from services.training.jobs import queries as job_queries
from services.training.models import queries as model_queries
from services.training.restore.history import RebuiltJob
from services.training.restore.reading import FoundVersion


class Written(StrEnum):
    """What became of one thing."""

    ADDED = "added"
    BROUGHT_FORWARD = "brought_forward"
    """The database had it, but an older state of it."""
    KEPT = "kept"
    """The database has it as it is in the bucket, or newer."""
    LEFT_OUT = "left_out"
    """It was not visible before either: a deleted alias, a version whose job has not ended."""


async def write_dataset(session: AsyncSession, dataset: Dataset) -> Written:
    """A dataset whose upload was completed is completed."""
    row = await session.get(DatasetRow, dataset.id)
    if row is None:
        session.add(dataset_queries.to_row(dataset))
        return Written.ADDED
    if row.state == dataset.state.value or dataset.state is not DatasetState.READY:
        return Written.KEPT
    row.state = dataset.state.value
    row.layout = None if dataset.layout is None else dataset.layout.model_dump(mode="json")
    return Written.BROUGHT_FORWARD


async def write_job(session: AsyncSession, job: RebuiltJob) -> Written:
    """A job goes in with its whole history, or stays as it is."""
    new = job.row
    row = await session.get(JobRow, new.id)
    if row is not None and not _is_behind(row, new):
        return Written.KEPT
    if row is not None:
        await session.execute(delete(JobEventRow).where(JobEventRow.job_id == row.id))
        await session.delete(row)
        await session.flush()
    if new.dataset_id is not None and await session.get(DatasetRow, new.dataset_id) is None:
        # Its dataset could not be read. The job has in its own record all that it needs.
        new.dataset_id = None
    session.add(new)
    await session.flush()
    job_queries.append_events(session, new, job.events)
    return Written.ADDED if row is None else Written.BROUGHT_FORWARD


def _is_behind(row: JobRow, new: JobRow) -> bool:
    if JobState(row.state).is_terminal:
        return False
    ended = JobState(new.state).is_terminal
    return ended or new.attempt > row.attempt or (new.cancel_requested and not row.cancel_requested)


async def write_version(session: AsyncSession, found: FoundVersion) -> Written:
    """A version that was deleted is deleted."""
    manifest = found.manifest
    row = await session.get(ModelVersionRow, (manifest.model_name, manifest.version))
    if row is None:
        session.add(model_queries.to_row(manifest, found.deleted_at))
        return Written.ADDED
    if row.deleted_at is not None or found.deleted_at is None:
        return Written.KEPT
    row.deleted_at = found.deleted_at
    return Written.BROUGHT_FORWARD


async def write_alias(session: AsyncSession, model_name: str, record: AliasRecord) -> Written:
    """The newer of the two stands.

    Raises `LookupError` for a version that cannot be had.
    """
    row = await model_queries.find_alias(session, model_name, record.alias, lock=True)
    if row is not None and row.updated_at >= record.updated_at:
        return Written.KEPT
    if record.version is None:
        if row is None:
            return Written.LEFT_OUT
        await session.delete(row)
        return Written.BROUGHT_FORWARD
    for number in record.versions:
        version = await session.get(ModelVersionRow, (model_name, number))
        if version is None or version.deleted_at is not None:
            raise LookupError(f"refers to version {number}, which could not be restored")
    written = Written.ADDED if row is None else Written.BROUGHT_FORWARD
    if row is None:
        row = ModelAliasRow(model_name=model_name, alias=record.alias)
        session.add(row)
    model_queries.point(row, record.version, record.split, record.shadow, record.updated_at)
    return written
