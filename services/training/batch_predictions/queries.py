"""Batch predictions in the jobs table."""

from collections.abc import Sequence

from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts import names
from services.contracts.batch_predictions import BatchPredictionSpec, BatchResult
from services.contracts.errors import InternalError, NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import (
    BatchPrediction,
    CapacityWait,
    Failure,
    JobKind,
    JobRecord,
    JobState,
    Progress,
    StageTiming,
)
from services.contracts.models import ModelManifest
from services.contracts.pages import Page
from services.runtime.database.tables import JobRow
from services.training.jobs import queries as job_queries
from services.training.models import queries as model_queries


async def get_row(session: AsyncSession, job_id: str) -> JobRow:
    """A batch prediction's row. Raises `NotFound`, for jobs of other kinds too."""
    return await job_queries.get_row(session, job_id, JobKind.PREDICT)


async def list_page(
    session: AsyncSession,
    bucket_uri: str,
    *,
    limit: int,
    cursor: str | None,
    states: Sequence[JobState],
    model_name: str | None,
) -> Page[BatchPrediction]:
    """One page, newest first."""
    rows, following = await job_queries.list_rows(
        session, JobKind.PREDICT, limit=limit, cursor=cursor, states=states, model_name=model_name
    )
    return Page[BatchPrediction](items=[to_prediction(row, bucket_uri) for row in rows], next_cursor=following)


async def find_version(session: AsyncSession, spec: BatchPredictionSpec) -> ModelManifest:
    """The version that is meant: a number, an alias's, or the newest. Deleted versions do not exist.

    Raises `NotFound`, whose message says whether it is the model, the version or the alias that is missing.
    """
    name, version = spec.model_name, spec.version
    if spec.alias is not None:
        row = await model_queries.find_alias(session, name, spec.alias)
        if row is None:
            model = await model_queries.get_model(session, name)
            shown = ", ".join(repr(each.alias) for each in model.aliases) or "none"
            raise NotFound(
                f"model {name!r} has no alias {spec.alias!r}: its aliases are {shown}",
                {"model_name": name, "alias": spec.alias},
            )
        version = row.version
    if version is None:
        version = (await model_queries.get_model(session, name)).latest_version
    return ModelManifest.model_validate((await model_queries.get_version_row(session, name, version)).manifest)


def to_prediction(row: JobRow, bucket_uri: str) -> BatchPrediction:
    """The row as the API shows it."""
    record = JobRecord.model_validate(row.record)
    if record.prediction is None or record.model_version is None:
        raise InternalError(f"the record of {row.id} is not a batch prediction's")
    job_id = JobId(row.id)
    return BatchPrediction(
        id=job_id,
        spec=record.prediction,
        model_name=row.model_name,
        version=record.model_version,
        state=JobState(row.state),
        attempt=row.attempt,
        submission_id=row.submission_id,
        progress=None if row.progress is None else Progress.model_validate(row.progress),
        waiting=None if row.waiting is None else CapacityWait.model_validate(row.waiting),
        stages=[StageTiming.model_validate(each) for each in row.stages],
        results_uri=f"{bucket_uri}/{names.predictions_prefix(job_id)}",
        result=None if row.result is None else BatchResult.model_validate(row.result),
        failure=None if row.failure is None else Failure.model_validate(row.failure),
        warnings=list(row.warnings),
        reason=row.reason,
        created_at=row.created_at,
        updated_at=row.updated_at,
        finished_at=row.finished_at,
    )
