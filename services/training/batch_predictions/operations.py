"""What can be done with batch predictions. One is in the bucket and in the database before it is answered."""

import asyncio

from services.contracts.base import utc_now
from services.contracts.batch_predictions import BatchPredictionSpec, BatchResult, DatasetFiles
from services.contracts.datasets import PrefixSource
from services.contracts.errors import Conflict
from services.contracts.ids import JobId, new_batch_prediction_id
from services.contracts.jobs import BatchPrediction, JobKind, JobRecord, JobState
from services.contracts.pages import Page
from services.runtime.auth import Principal
from services.runtime.objects import open_store
from services.runtime.settings import check_source_allowed
from services.training.batch_predictions import queries
from services.training.context import Training
from services.training.datasets.operations import source_uri
from services.training.idempotency import IdempotentRequest, reserve_id
from services.training.jobs import operations as job_operations

CREATE_ROUTE = "POST /v1/batch-predictions"


async def create(
    training: Training, principal: Principal, spec: BatchPredictionSpec, key: str | None
) -> BatchPrediction:
    """Accepts a batch prediction: settles which version is meant, writes it to the bucket, commits it, and lets the
    reconciler know.

    Raises:
        NotFound: the model, version or alias.
        SourceNotAllowed, SourceUnreadable: the prefix.
        NotFound, DatasetNotReady: the dataset.
        IdempotencyKeyReused: the key came with another body.
    """
    request = IdempotentRequest(principal, CREATE_ROUTE, key, spec)
    row = await job_operations.find_accepted(training, request)
    if row is not None:
        return queries.to_prediction(row, training.store.uri)
    async with training.database.session() as session:
        model = await queries.find_version(session, spec)
    where = await _source_of(training, spec)
    job_id = await reserve_id(training.database, request, new_batch_prediction_id)
    record = JobRecord(
        job_id=JobId(job_id),
        kind=JobKind.PREDICT,
        model_name=model.model_name,
        model_version=model.version,
        created_at=utc_now(),
        spec=None,
        source_uri=where,
        prediction=spec,
    )
    await job_operations.accept(training.database, training.store, record)
    training.wake.send()
    return await get(training, job_id)


async def _source_of(training: Training, spec: BatchPredictionSpec) -> str:
    """Where the files are. Whether there are any is for the job to see: listing may take long."""
    match spec.source:
        case PrefixSource(uri=uri):
            check_source_allowed(uri, training.settings)
            await asyncio.to_thread(lambda: next(open_store(uri).list(""), None))
            return uri.rstrip("/")
        case DatasetFiles(dataset_id=dataset_id):
            return source_uri(training.store.uri, await job_operations.get_ready_dataset(training, dataset_id))


async def get(training: Training, job_id: str) -> BatchPrediction:
    """One batch prediction. Raises `NotFound`."""
    async with training.database.session() as session:
        return queries.to_prediction(await queries.get_row(session, job_id), training.store.uri)


async def list_page(
    training: Training, *, limit: int, cursor: str | None, states: list[JobState], model_name: str | None
) -> Page[BatchPrediction]:
    """One page, newest first."""
    async with training.database.session() as session:
        return await queries.list_page(
            session, training.store.uri, limit=limit, cursor=cursor, states=states, model_name=model_name
        )


async def cancel(training: Training, job_id: str) -> BatchPrediction:
    """Asks for it to be stopped. Asking again changes nothing.

    Raises `Conflict` when it has succeeded or failed already.
    """
    row = await job_operations.cancel_row(training, job_id, JobKind.PREDICT)
    return queries.to_prediction(row, training.store.uri)


async def logs(training: Training, job_id: str, attempt: int | None) -> str:
    """An attempt's log. Raises as `jobs.operations.logs` does."""
    return await job_operations.logs(training, job_id, attempt, JobKind.PREDICT)


# --- results --------------------------------------------------------------------------------------------------------


async def get_result(training: Training, job_id: str) -> BatchResult:
    """What it made. Raises `NotFound`, and `Conflict` while there is nothing."""
    found = await get(training, job_id)
    if found.result is None:
        if found.state.is_terminal:
            raise Conflict(f"{job_id} has {_ended(found)} and left no results", {"state": found.state.value})
        raise Conflict(
            f"{job_id} is {found.state.value}: its results are there when it has succeeded, which "
            f"GET /v1/batch-predictions/{job_id}/events tells",
            {"state": found.state.value},
        )
    return found.result


def _ended(found: BatchPrediction) -> str:
    return f"failed ({found.failure.message})" if found.failure is not None else f"been {found.state.value}"
