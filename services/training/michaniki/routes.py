"""HTTP for Michaniki's calls, all but its prediction, which is the inference gateway's."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Form, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from services.contracts.errors import (
    ClassTooSmall,
    Conflict,
    DatasetEmpty,
    DatasetTooFewClasses,
    IdempotencyKeyReused,
    NotFound,
    ObjectStoreUnavailable,
    ParentUnusable,
    PermissionDenied,
    SourceEmpty,
    SourceNotAllowed,
    SourceUnreadable,
    WeightsUnusable,
)
from services.contracts.michaniki import (
    TAG,
    MichanikiCancelAnswer,
    MichanikiCancelled,
    MichanikiLabelAnswer,
    MichanikiState,
    MichanikiTasks,
    MichanikiTaskStarted,
)
from services.runtime.auth import Principal, Scope, require
from services.runtime.problems import problem_responses
from services.training.context import IdempotencyKey, Predictor, Trainer, TrainingContext
from services.training.michaniki import operations
from services.training.michaniki.forms import MichanikiLabelForm, MichanikiRetrainForm, MichanikiTransferForm

MAX_TASKS = 200
TRANSFERRING = "Transfer Learning and Fine-Tuning are Initiated"
RETRAINING = "Retraining and Fine-Tuning are Initiated"
LABELLING = "Labeling is Initiated"

router = APIRouter(tags=[TAG[0]], deprecated=True)


def _multipart(form: str) -> dict[str, Any]:
    """For `openapi_extra=`: the form may come as multipart as well."""
    schema = {"$ref": f"#/components/schemas/{form}"}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}


def _either(first: Scope, second: Scope) -> Callable[[Request], Awaitable[Principal]]:
    """A dependency: a key with one of the scopes. Which one a task needs, depends on its kind."""

    async def principal_with_either(request: Request) -> Principal:
        try:
            return await require(first)(request)
        except PermissionDenied:
            return await require(second)(request)

    return principal_with_either


@router.post(
    "/inceptionV3/transfer",
    summary="Make a model of images in S3",
    openapi_extra=_multipart("MichanikiTransferForm"),
    responses=problem_responses(
        SourceNotAllowed,
        SourceUnreadable,
        DatasetEmpty,
        DatasetTooFewClasses,
        ClassTooSmall,
        WeightsUnusable,
        IdempotencyKeyReused,
    ),
)
async def michaniki_transfer(
    training: TrainingContext,
    principal: Trainer,
    form: Annotated[MichanikiTransferForm, Form()],
    idempotency_key: IdempotencyKey = None,
) -> MichanikiTaskStarted:
    """Registers the prefix as a dataset, and trains a version of the model that its last folder names.

    Use `POST /v1/datasets` and `POST /v1/training-jobs` instead.
    """
    job = await operations.transfer(training, principal, form, idempotency_key)
    return MichanikiTaskStarted(task_id=job.id, status=TRANSFERRING)


@router.post(
    "/inceptionV3/retrain",
    summary="Train a model again on images in S3",
    openapi_extra=_multipart("MichanikiRetrainForm"),
    responses=problem_responses(
        NotFound,
        SourceNotAllowed,
        SourceUnreadable,
        DatasetEmpty,
        DatasetTooFewClasses,
        ClassTooSmall,
        ParentUnusable,
        IdempotencyKeyReused,
    ),
)
async def michaniki_retrain(
    training: TrainingContext,
    principal: Trainer,
    form: Annotated[MichanikiRetrainForm, Form()],
    idempotency_key: IdempotencyKey = None,
) -> MichanikiTaskStarted:
    """Registers the prefix as a dataset, and trains the newest version of the model that its last folder names again.

    Use `POST /v1/datasets`, and `POST /v1/training-jobs` with a `parent`, instead.
    """
    job = await operations.retrain(training, principal, form, idempotency_key)
    return MichanikiTaskStarted(task_id=job.id, status=RETRAINING)


@router.post(
    "/inceptionV3/label",
    summary="Label all images of a prefix in S3",
    response_model=MichanikiLabelAnswer,
    openapi_extra=_multipart("MichanikiLabelForm"),
    responses={
        202: {"model": MichanikiTaskStarted, "description": "It takes longer than the server waits, and goes on."},
        **problem_responses(
            NotFound,
            SourceNotAllowed,
            SourceUnreadable,
            SourceEmpty,
            Conflict,
            IdempotencyKeyReused,
            ObjectStoreUnavailable,
        ),
    },
)
async def michaniki_label(
    training: TrainingContext,
    principal: Predictor,
    form: Annotated[MichanikiLabelForm, Form()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Labels the images with the newest version of the model, in a batch prediction, and answers when that has ended.

    What takes longer than `REKINDLE_LEGACY_LABEL_WAIT_S` is answered with its task's id and goes on; the same call with
    the same `Idempotency-Key` waits for it again. Use `POST /v1/batch-predictions` instead.
    """
    found = await operations.label(training, principal, form, idempotency_key)
    where = {"Link": f'</v1/batch-predictions/{found.id}>; rel="describedby"'}
    if not found.state.is_terminal:
        started = MichanikiTaskStarted(task_id=found.id, status=LABELLING)
        return JSONResponse(started.model_dump(mode="json"), 202, where)
    labels = await operations.read_labels(training, found)
    return StreamingResponse(labels, media_type="application/json", headers=where)


@router.post(
    "/tasks/info",
    summary="How tasks are",
    response_model_exclude_unset=True,
    responses=problem_responses(NotFound),
)
async def michaniki_task_info(
    training: TrainingContext,
    principal: Annotated[Principal, Depends(_either(Scope.READ, Scope.PREDICT))],
    task_ids: Annotated[
        list[str],
        Body(max_length=MAX_TASKS, description="What `task_id` was.", examples=[["job_0199a8c0b1f23a4b5c6d7e8f"]]),
    ],
) -> MichanikiTasks:
    """States in Celery's names, and the accuracies of training that has succeeded.

    An id that is no task's is a problem, where Celery said `PENDING` for ever. Use `GET /v1/training-jobs/{job_id}` and
    `GET /v1/batch-predictions/{job_id}`, or their event streams, instead.
    """
    return MichanikiTasks(tasks=await operations.task_info(training, principal, task_ids))


@router.get("/tasks/cancel", summary="Cancel a task", responses=problem_responses(NotFound, Conflict))
async def michaniki_cancel_task(
    training: TrainingContext,
    response: Response,
    principal: Annotated[Principal, Depends(_either(Scope.TRAIN, Scope.PREDICT))],
    remote_task_id: Annotated[str, Query(description="What `task_id` was.", examples=["job_0199a8c0b1f23a4b5c6d7e8f"])],
) -> MichanikiCancelAnswer:
    """The task stops within seconds; `/tasks/info` says `REVOKED` once it has. Cancelling again changes nothing.

    Use `POST /v1/training-jobs/{job_id}/cancel` and `POST /v1/batch-predictions/{job_id}/cancel` instead.
    """
    await operations.cancel(training, principal, remote_task_id)
    response.headers["Cache-Control"] = "no-store"  # it is a GET that changes something
    return MichanikiCancelAnswer(task=MichanikiCancelled(remote_task_id=remote_task_id, status=MichanikiState.REVOKED))
