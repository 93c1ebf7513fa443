"""What can be done with training jobs. A job is in the bucket and in the database before it is answered."""

import asyncio
from datetime import datetime

from sqlalchemy.exc import IntegrityError

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.datasets import Dataset, DatasetState
from services.contracts.errors import (
    CallerError,
    Conflict,
    DatasetNotReady,
    NotFound,
    SourceUnreadable,
    WeightsUnusable,
)
from services.contracts.ids import JobId, new_job_id
from services.contracts.jobs import (
    EpochMetrics,
    JobCancellation,
    JobKind,
    JobRecord,
    JobState,
    ParentVersion,
    TrainerRecord,
    TrainingJob,
    TrainingJobSpec,
    WeightsUri,
)
from services.contracts.models import BASE_MODEL, ModelManifest
from services.contracts.pages import Page
from services.contracts.receipts import Receipt
from services.runtime.auth import Principal
from services.runtime.database import Database
from services.runtime.database.tables import JobRow
from services.runtime.objects import ObjectStore, open_object
from services.runtime.prices import read_prices
from services.runtime.settings import check_source_allowed
from services.training.context import Training
from services.training.datasets import queries as dataset_queries
from services.training.datasets.operations import source_uri
from services.training.idempotency import IdempotentRequest, find_reserved, reserve_id
from services.training.jobs import parents, queries
from services.training.jobs.receipt import FoundTrainer, make_receipt
from services.training.models import queries as model_queries
from services.training.reconciler.progress import state_event
from services.training.reconciler.spare import ray_job_of, submission_of

CREATE_ROUTE = "POST /v1/training-jobs"
MAX_EVENTS = 1_000_000
"""Of a job, for its receipt; more than any has."""


async def create(training: Training, principal: Principal, spec: TrainingJobSpec, key: str | None) -> TrainingJob:
    """Accepts a job: writes it to the bucket, commits it, and lets the reconciler know.

    Raises:
        NotFound, DatasetNotReady: the dataset.
        NotFound, ParentUnusable: the version to go on from.
        CallerError: the model name `base`.
        SourceNotAllowed, WeightsUnusable: the weights' URI.
        IdempotencyKeyReused: the key came with another body.
    """
    request = IdempotentRequest(principal, CREATE_ROUTE, key, spec)
    row = await find_accepted(training, request)
    if row is not None:
        return queries.to_job(row)
    dataset = await get_ready_dataset(training, spec.dataset_id)
    if spec.parent is None:
        await _check_weights(training, spec)
    else:
        spec = parents.resolve(spec, await _read_parent(training, spec.parent), dataset)
    model_name = spec.model_name or dataset.name
    if model_name == BASE_MODEL:
        raise CallerError(f"the model name {BASE_MODEL!r} is the pretrained classifier's: choose another `model_name`")
    job_id = await reserve_id(training.database, request, new_job_id)
    record = JobRecord(
        job_id=JobId(job_id),
        kind=JobKind.TRAIN,
        model_name=model_name,
        created_at=utc_now(),
        spec=spec,
        source_uri=source_uri(training.store.uri, dataset),
    )
    await accept(training.database, training.store, record)
    training.wake.send()
    return await get(training, job_id)


async def find_accepted(training: Training, request: IdempotentRequest) -> JobRow | None:
    """The job that the same request made before, if it did. Raises `IdempotencyKeyReused`."""
    made = await find_reserved(training.database, request)
    if made is None:
        return None
    async with training.database.session() as session:
        return await queries.find_row(session, made)


async def get_ready_dataset(training: Training, dataset_id: str) -> Dataset:
    """The dataset. Raises `NotFound`, and `DatasetNotReady` before its upload is complete."""
    async with training.database.session() as session:
        dataset = dataset_queries.to_dataset(await dataset_queries.get_row(session, dataset_id))
    if dataset.state is not DatasetState.READY:
        raise DatasetNotReady(
            f"the upload of dataset {dataset.id} is not complete: send its files, then "
            f"POST /v1/datasets/{dataset.id}/complete",
            {"dataset_id": dataset.id},
        )
    return dataset


async def _read_parent(training: Training, parent: ParentVersion) -> ModelManifest:
    """The version that is meant, the newest where none is named. Raises `NotFound`, also for one that was deleted."""
    async with training.database.session() as session:
        version = parent.version
        if version is None:
            version = (await model_queries.get_model(session, parent.model_name)).latest_version
        row = await model_queries.get_version_row(session, parent.model_name, version)
    return ModelManifest.model_validate(row.manifest)


async def accept(database: Database, store: ObjectStore, record: JobRecord) -> None:
    """Makes the job durable, once: whoever comes second with the same id changes nothing."""
    record = await asyncio.to_thread(_write_record, store, record)
    try:
        async with database.transaction() as session:
            if await queries.find_row(session, record.job_id) is not None:
                return
            row = queries.new_row(record)
            session.add(row)
            await session.flush()
            accepted = state_event(JobState.QUEUED, JobState.QUEUED, record.created_at, 0, row.reason)
            queries.append_events(session, row, [accepted])
    except IntegrityError:
        return  # the same request, sent twice at a time


def _write_record(store: ObjectStore, record: JobRecord) -> JobRecord:
    """The record as it stands in the bucket: an earlier one of the same id is kept."""
    key = names.job_spec(record.job_id)
    if store.put(key, record.model_dump_json().encode(), if_absent=True) is not None:
        return record
    return JobRecord.model_validate_json(store.get(key))


async def _check_weights(training: Training, spec: TrainingJobSpec) -> None:
    files = [each.weights.uri for each in spec.possible_backbones() if isinstance(each.weights, WeightsUri)]
    for uri in dict.fromkeys(files):
        await _check_weights_file(training, uri)


async def _check_weights_file(training: Training, uri: str) -> None:
    check_source_allowed(uri, training.settings)

    def exists() -> bool:
        store, key = open_object(uri)
        return store.head(key) is not None

    try:
        found = await asyncio.to_thread(exists)
    except SourceUnreadable as error:
        raise WeightsUnusable(f"the weights {uri!r} cannot be read: {error.message}", {"uri": uri}) from error
    if not found:
        raise WeightsUnusable(f"there are no weights at {uri!r}: check the URI", {"uri": uri})


async def get(training: Training, job_id: str) -> TrainingJob:
    """One job. Raises `NotFound`."""
    async with training.database.session() as session:
        return queries.to_job(await queries.get_row(session, job_id))


async def list_page(
    training: Training, *, limit: int, cursor: str | None, states: list[JobState], model_name: str | None
) -> Page[TrainingJob]:
    """One page of jobs, newest first."""
    async with training.database.session() as session:
        return await queries.list_page(session, limit=limit, cursor=cursor, states=states, model_name=model_name)


async def cancel(training: Training, job_id: str) -> TrainingJob:
    """Asks for the job to be stopped. Asking again changes nothing.

    Raises `Conflict` when the job has succeeded or failed already.
    """
    return queries.to_job(await cancel_row(training, job_id, JobKind.TRAIN))


async def cancel_row(training: Training, job_id: str, kind: JobKind) -> JobRow:
    """As `cancel`, for a job of any kind."""
    async with training.database.transaction() as session:
        row = await queries.get_row(session, job_id, kind, lock=True)
        state = JobState(row.state)
        if state in (JobState.SUCCEEDED, JobState.FAILED):
            raise Conflict(f"{job_id} has {state.value} already: there is nothing to cancel", {"state": state.value})
        if state is not JobState.CANCELLED and not row.cancel_requested:
            row.cancel_requested = True
            row.state = JobState.CANCELLING.value
            row.waiting = None
            row.reason = "Cancellation was requested."
            row.updated_at = utc_now()
            event = state_event(state, JobState.CANCELLING, row.updated_at, row.attempt, row.reason)
            queries.append_events(session, row, [event])
    if not JobState(row.state).is_terminal:
        await asyncio.to_thread(_record_cancellation, training.store, JobId(row.id), row.updated_at)
    training.wake.send()
    training.changed.send()
    return row


def _record_cancellation(store: ObjectStore, job_id: JobId, at: datetime) -> None:
    """Into the bucket before the answer: a restored job must not come back to life. The first record stays."""
    cancellation = JobCancellation(requested_at=at)
    store.put(names.job_cancellation(job_id), cancellation.model_dump_json().encode(), if_absent=True)


async def metrics(training: Training, job_id: str) -> list[EpochMetrics]:
    """Every epoch so far. Raises `NotFound`."""
    async with training.database.session() as session:
        await queries.get_row(session, job_id)
        return await queries.list_metrics(session, job_id)


async def receipt(training: Training, job_id: str) -> Receipt:
    """What the job has cost so far. Raises `NotFound`, and `InternalError` for a price file that cannot be used."""
    async with training.database.session() as session:
        job = queries.to_job(await queries.get_row(session, job_id))
        events = await queries.list_events(session, job_id, after=0, limit=MAX_EVENTS)
    trainers = await asyncio.to_thread(_read_trainers, training.store, job.id, job.attempt)
    prices = await asyncio.to_thread(read_prices, training.settings.prices)
    return make_receipt(job, events, trainers, prices, utc_now())


def _read_trainers(store: ObjectStore, job_id: JobId, attempts: int) -> list[FoundTrainer]:
    return [
        FoundTrainer(attempt, TrainerRecord.model_validate_json(store.get(info.key)))
        for attempt in range(1, attempts + 1)
        for info in store.list(names.attempt_trainers(job_id, attempt))
    ]


async def logs(training: Training, job_id: str, attempt: int | None, kind: JobKind = JobKind.TRAIN) -> str:
    """An attempt's log as Ray has it, by default the newest attempt's.

    Raises:
        NotFound: no such job or attempt, or Ray has forgotten it.
        ClusterUnavailable: Ray does not answer.
    """
    async with training.database.session() as session:
        row = await queries.get_row(session, job_id, kind)
    newest = row.attempt
    number = newest if attempt is None else attempt
    if not 1 <= number <= newest:
        which = "it has not started yet" if newest == 0 else f"its attempts are 1 to {newest}"
        raise NotFound(f"no log of {job_id}: {which}", {"job_id": job_id})
    if number == newest:
        ray_job = ray_job_of(row)
    else:
        ray_job = await asyncio.to_thread(submission_of, training.store, JobId(job_id), number)
    text = await training.ray.logs(ray_job)
    if text is None:
        raise NotFound(
            f"the Ray cluster has no log of attempt {number}: not started yet, or the cluster was restarted since",
            {"job_id": job_id, "attempt": number},
        )
    return text
