"""HTTP for batch predictions."""

from collections.abc import AsyncIterator
from enum import StrEnum
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from fastapi.responses import PlainTextResponse, StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent

from services.contracts.base import ObjectRef, ResourceName
from services.contracts.batch_predictions import BatchPredictionSpec
from services.contracts.errors import (
    CallerError,
    ClusterUnavailable,
    Conflict,
    DatasetNotReady,
    IdempotencyKeyReused,
    NotFound,
    ObjectStoreUnavailable,
    SourceNotAllowed,
    SourceUnreadable,
)
from services.contracts.jobs import BatchPrediction, JobKind, JobState
from services.contracts.pages import Page
from services.runtime.problems import problem_responses
from services.training.batch_predictions import operations
from services.training.context import IdempotencyKey, Predictor, Training, TrainingContext
from services.training.cursors import DEFAULT_PAGE_SIZE, Cursor, Limit
from services.training.downloads import download
from services.training.jobs.sse import MAX_SEQ, After, LastEventId, last_seen, sent_events

TAG = ("batch-predictions", "Labels for every image of a prefix or a dataset, each exactly once, whatever dies.")
JSONL = "application/jsonl"
CSV = "text/csv"

router = APIRouter(prefix="/v1/batch-predictions", tags=[TAG[0]])


class ResultFormat(StrEnum):
    """Of the results."""

    JSONL = "jsonl"
    CSV = "csv"


Format = Annotated[ResultFormat, Query(description="`jsonl`: a JSON object per line; `csv`: a table with a header.")]
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {media_type: {"schema": {"type": "string"}} for media_type in (CSV, JSONL)}}
}


@router.post(
    "",
    status_code=201,
    summary="Label every image of a source",
    response_description="The accepted batch prediction. The same one again when the Idempotency-Key was used before.",
    responses=problem_responses(
        CallerError, NotFound, DatasetNotReady, SourceNotAllowed, SourceUnreadable, IdempotencyKeyReused
    ),
)
async def create_batch_prediction(
    training: TrainingContext, principal: Predictor, body: BatchPredictionSpec, idempotency_key: IdempotencyKey = None
) -> BatchPrediction:
    """Labels all files below a prefix, or of a dataset, with a published version of a model.

    Which version that is, is settled now: what is published or promoted later changes nothing. Files that are no images
    are set aside with the reason. Which files there are is settled when it first runs. Once accepted, it survives the
    loss of any machine, and every file is in the results exactly once.
    """
    return await operations.create(training, principal, body, idempotency_key)


@router.get("", summary="List batch predictions, newest first")
async def list_batch_predictions(
    training: TrainingContext,
    _principal: Predictor,
    limit: Limit = DEFAULT_PAGE_SIZE,
    cursor: Cursor = None,
    state: Annotated[list[JobState], Query(description="Only those in this state; may be given several times.")] = [],  # noqa: B006
    model_name: Annotated[ResourceName | None, Query(description="Only those with this model.")] = None,
) -> Page[BatchPrediction]:
    """All batch predictions, page by page."""
    return await operations.list_page(training, limit=limit, cursor=cursor, states=state, model_name=model_name)


@router.get("/{job_id}", summary="Get a batch prediction", responses=problem_responses(NotFound))
async def get_batch_prediction(training: TrainingContext, _principal: Predictor, job_id: str) -> BatchPrediction:
    """State, progress, timings, and the result or the failure."""
    return await operations.get(training, job_id)


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    summary="Cancel a batch prediction",
    responses=problem_responses(NotFound, Conflict),
)
async def cancel_batch_prediction(training: TrainingContext, _principal: Predictor, job_id: str) -> BatchPrediction:
    """It stops within seconds, and is `cancelled` once it has. Cancelling again changes nothing."""
    return await operations.cancel(training, job_id)


@router.get(
    "/{job_id}/results",
    summary="Download the labels",
    response_class=StreamingResponse,
    response_description="One line per image, in order of paths.",
    responses={**_STREAM, **problem_responses(NotFound, Conflict, ObjectStoreUnavailable)},
)
async def get_batch_prediction_results(
    training: TrainingContext,
    _principal: Predictor,
    job_id: str,
    format: Format = ResultFormat.JSONL,
) -> StreamingResponse:
    """What the bucket holds below `results_uri`: `predictions.jsonl`, or `predictions.csv` with a header."""
    result = await operations.get_result(training, job_id)
    return await _streamed(training, result.predictions_csv if format is ResultFormat.CSV else result.predictions_jsonl)


@router.get(
    "/{job_id}/quarantine",
    summary="Download the list of files that were set aside",
    response_class=StreamingResponse,
    response_description="One line per file with path, reason and message, in order of paths.",
    responses={**_STREAM, **problem_responses(NotFound, Conflict, ObjectStoreUnavailable)},
)
async def get_batch_prediction_quarantine(
    training: TrainingContext, _principal: Predictor, job_id: str, format: Format = ResultFormat.JSONL
) -> StreamingResponse:
    """`quarantine.jsonl` or `quarantine.csv`; without a file in it where every one was labelled."""
    result = await operations.get_result(training, job_id)
    return await _streamed(training, result.quarantine_csv if format is ResultFormat.CSV else result.quarantine_jsonl)


async def _streamed(training: Training, ref: ObjectRef) -> StreamingResponse:
    found, name = await download(training.store, ref), ref.key.rpartition("/")[2]
    media_type = CSV if name.endswith(".csv") else JSONL
    return StreamingResponse(found.chunks, media_type=media_type, headers=found.headers(name))


@router.get(
    "/{job_id}/logs",
    summary="Get an attempt's log",
    response_class=PlainTextResponse,
    responses=problem_responses(NotFound, ClusterUnavailable),
)
async def get_batch_prediction_logs(
    training: TrainingContext,
    _principal: Predictor,
    job_id: str,
    attempt: Annotated[int | None, Query(ge=1, le=MAX_SEQ, description="Default: the newest.")] = None,
) -> PlainTextResponse:
    """What the attempt's processes printed, from the Ray cluster."""
    return PlainTextResponse(await operations.logs(training, job_id, attempt))


async def _existing_prediction(training: TrainingContext, job_id: str) -> str:
    """Answers 404 before a stream begins."""
    return (await operations.get(training, job_id)).id


@router.get(
    "/{job_id}/events",
    summary="Follow a batch prediction",
    response_class=EventSourceResponse,
    response_description="Server-sent events. `id` is the event's `seq`, `event` its `type`, `data` a `JobEvent`.",
    responses=problem_responses(NotFound),
)
async def stream_batch_prediction_events(
    training: TrainingContext,
    _principal: Predictor,
    job_id: Annotated[str, Depends(_existing_prediction)],
    after: After = 0,
    last_event_id: LastEventId = None,
) -> AsyncIterator[ServerSentEvent]:
    """The whole history from its beginning, then everything that happens, until it has ended.

    The stream may end before that: connect again with `Last-Event-ID`.
    """
    async for event in sent_events(training, job_id, last_seen(after, last_event_id), JobKind.PREDICT):
        yield event
