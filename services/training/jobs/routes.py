"""HTTP for training jobs."""

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field

from services.contracts.base import ResourceName
from services.contracts.errors import (
    CallerError,
    ClusterUnavailable,
    Conflict,
    DatasetNotReady,
    IdempotencyKeyReused,
    NotFound,
    ParentUnusable,
    SourceNotAllowed,
    WeightsUnusable,
)
from services.contracts.jobs import EpochMetrics, JobState, TrainingJob, TrainingJobSpec
from services.contracts.pages import Page
from services.contracts.receipts import Receipt
from services.runtime.problems import problem_responses
from services.training.context import IdempotencyKey, Reader, Trainer, TrainingContext
from services.training.cursors import DEFAULT_PAGE_SIZE, Cursor, Limit
from services.training.jobs import operations
from services.training.jobs.sse import MAX_SEQ, After, LastEventId, last_seen, sent_events

TAG = ("training-jobs", "Training on a dataset; a job that was accepted ends, whatever dies in between.")

router = APIRouter(prefix="/v1/training-jobs", tags=[TAG[0]])


class JobMetrics(BaseModel):
    """Every epoch that was reported."""

    epochs: list[EpochMetrics] = Field(description="In order; of epochs that took milliseconds some are left out.")


@router.post(
    "",
    status_code=201,
    summary="Start a training job",
    response_description="The accepted job. The same one again when the Idempotency-Key was used before.",
    responses=problem_responses(
        CallerError,
        NotFound,
        DatasetNotReady,
        ParentUnusable,
        SourceNotAllowed,
        WeightsUnusable,
        IdempotencyKeyReused,
    ),
)
async def create_training_job(
    training: TrainingContext, principal: Trainer, body: TrainingJobSpec, idempotency_key: IdempotencyKey = None
) -> TrainingJob:
    """Trains a classifier on a dataset and publishes it as a new version of a model.

    Everything but the dataset has a default. With a `parent`, a published version is trained again: the rest of the
    spec may be left out, and the new version's report compares the two. An accepted job survives the loss of any
    machine.
    """
    return await operations.create(training, principal, body, idempotency_key)


@router.get("", summary="List training jobs, newest first")
async def list_training_jobs(
    training: TrainingContext,
    _principal: Reader,
    limit: Limit = DEFAULT_PAGE_SIZE,
    cursor: Cursor = None,
    state: Annotated[list[JobState], Query(description="Only jobs in this state; may be given several times.")] = [],  # noqa: B006
    model_name: Annotated[ResourceName | None, Query(description="Only jobs for this model.")] = None,
) -> Page[TrainingJob]:
    """All jobs, page by page."""
    return await operations.list_page(training, limit=limit, cursor=cursor, states=state, model_name=model_name)


@router.get("/{job_id}", summary="Get a training job", responses=problem_responses(NotFound))
async def get_training_job(training: TrainingContext, _principal: Reader, job_id: str) -> TrainingJob:
    """State, progress, newest metrics, timings, and the result or the failure."""
    return await operations.get(training, job_id)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    summary="Cancel a training job",
    responses=problem_responses(NotFound, Conflict),
)
async def cancel_training_job(training: TrainingContext, _principal: Trainer, job_id: str) -> TrainingJob:
    """The job stops within seconds, and is `cancelled` once it has. Cancelling again changes nothing."""
    return await operations.cancel(training, job_id)


@router.get("/{job_id}/metrics", summary="Get the metrics of all epochs", responses=problem_responses(NotFound))
async def get_training_job_metrics(training: TrainingContext, _principal: Reader, job_id: str) -> JobMetrics:
    """Losses and accuracies by epoch."""
    return JobMetrics(epochs=await operations.metrics(training, job_id))


@router.get("/{job_id}/receipt", summary="Get what a job has cost", responses=problem_responses(NotFound))
async def get_training_job_receipt(training: TrainingContext, _principal: Reader, job_id: str) -> Receipt:
    """Which machines worked for the job and what that cost, what was done twice, and what the caches spared it."""
    return await operations.receipt(training, job_id)


@router.get(
    "/{job_id}/logs",
    summary="Get an attempt's log",
    response_class=PlainTextResponse,
    responses=problem_responses(NotFound, ClusterUnavailable),
)
async def get_training_job_logs(
    training: TrainingContext,
    _principal: Reader,
    job_id: str,
    attempt: Annotated[int | None, Query(ge=1, le=MAX_SEQ, description="Default: the newest.")] = None,
) -> PlainTextResponse:
    """What the attempt's processes printed, from the Ray cluster."""
    return PlainTextResponse(await operations.logs(training, job_id, attempt))


async def _existing_job(training: TrainingContext, job_id: str) -> str:
    """Answers 404 before a stream begins."""
    return (await operations.get(training, job_id)).id


@router.get(
    "/{job_id}/events",
    summary="Follow a training job",
    response_class=EventSourceResponse,
    response_description="Server-sent events. `id` is the event's `seq`, `event` its `type`, `data` a `JobEvent`.",
    responses=problem_responses(NotFound),
)
async def stream_training_job_events(
    training: TrainingContext,
    _principal: Reader,
    job_id: Annotated[str, Depends(_existing_job)],
    after: After = 0,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """The job's whole history from its beginning, then everything that happens, until the job has ended.

    The stream may end before the job has: connect again with `Last-Event-ID`.
    """
    async for event in sent_events(training, job_id, last_seen(after, last_event_id)):
        yield event
