"""What Michaniki's calls do now: each is one or two operations of the API's own."""

import asyncio
import time
from collections.abc import AsyncIterator

from services.contracts.batch_predictions import BatchPredictionSpec, BatchResult, LabelledImage
from services.contracts.datasets import Dataset, NewDataset, PrefixSource
from services.contracts.errors import NotFound, PermissionDenied, SourceEmpty, SourceUnreadable
from services.contracts.jobs import (
    BatchPrediction,
    EpochMetrics,
    JobKind,
    JobState,
    ParentVersion,
    PublishedModel,
    TrainingJob,
    TrainingJobSpec,
)
from services.contracts.michaniki import (
    TOP_K,
    MichanikiLabelledImage,
    MichanikiPrediction,
    MichanikiState,
    MichanikiTask,
)
from services.runtime.auth import Principal, Scope
from services.runtime.database.tables import JobRow
from services.training.batch_predictions import operations as batch_operations
from services.training.context import Training
from services.training.datasets import operations as dataset_operations
from services.training.downloads import download
from services.training.jobs import operations as job_operations
from services.training.jobs import queries as job_queries
from services.training.jobs.event_stream import POLL_S
from services.training.michaniki.forms import MichanikiLabelForm, MichanikiRetrainForm, MichanikiTransferForm
from services.training.models import operations as model_operations

_TO_READ = {JobKind.TRAIN: Scope.READ, JobKind.PREDICT: Scope.PREDICT}
_TO_CANCEL = {JobKind.TRAIN: Scope.TRAIN, JobKind.PREDICT: Scope.PREDICT}
"""The scopes that the routes of each kind of job need. Jobs of other kinds were no tasks of a user's."""
_ENDED = {
    JobState.SUCCEEDED: MichanikiState.SUCCESS,
    JobState.FAILED: MichanikiState.FAILURE,
    JobState.CANCELLED: MichanikiState.REVOKED,
}
_SOURCE_ERRORS = {error.code: error for error in (SourceEmpty, SourceUnreadable)}


# --- training -------------------------------------------------------------------------------------------------------


async def transfer(
    training: Training, principal: Principal, form: MichanikiTransferForm, key: str | None
) -> TrainingJob:
    """Registers the prefix as a dataset and trains a new version of the model on it.

    Raises what creating a dataset and creating a training job raise.
    """
    settings = training.settings
    dataset = await _register(training, principal, form, key)
    spec = TrainingJobSpec(
        dataset_id=dataset.id,
        model_name=form.model_name,
        backbone=settings.legacy_backbone,
        weights=settings.legacy_backbone_weights(),
    )
    return await job_operations.create(training, principal, spec, key)


async def retrain(training: Training, principal: Principal, form: MichanikiRetrainForm, key: str | None) -> TrainingJob:
    """Registers the prefix as a dataset and trains the model's newest version again on it.

    Raises what creating a dataset and creating a training job raise; `NotFound`, without a model of the prefix's name,
    before anything is registered.
    """
    await model_operations.get_model(training, form.model_name)
    dataset = await _register(training, principal, form, key)
    spec = TrainingJobSpec(dataset_id=dataset.id, parent=ParentVersion(model_name=form.model_name))
    return await job_operations.create(training, principal, spec, key)


async def _register(training: Training, principal: Principal, form: MichanikiTransferForm, key: str | None) -> Dataset:
    body = NewDataset(name=form.model_name, source=PrefixSource(uri=form.uri))
    return await dataset_operations.create(training, principal, body, key)


# --- labelling ------------------------------------------------------------------------------------------------------


async def label(training: Training, principal: Principal, form: MichanikiLabelForm, key: str | None) -> BatchPrediction:
    """Labels the prefix with the model's newest version, and waits for the end, at most `legacy_label_wait_s`.

    What does not end in that time goes on, also when the caller has left.

    Raises what creating a batch prediction raises.
    """
    source = PrefixSource(uri=form.uri)
    spec = BatchPredictionSpec(model_name=form.model_name, source=source, top_k=TOP_K)
    found = await batch_operations.create(training, principal, spec, key)
    end_at_s = time.monotonic() + training.settings.legacy_label_wait_s
    while not (found.state.is_terminal or training.ending.is_set()):
        mark = training.changed.mark()
        found = await batch_operations.get(training, found.id)
        left_s = end_at_s - time.monotonic()
        if found.state.is_terminal or left_s <= 0:
            break
        await training.changed.wait(mark, min(POLL_S, left_s))
    return found


async def read_labels(training: Training, found: BatchPrediction) -> AsyncIterator[bytes]:
    """The labels of one that has ended, as `MichanikiLabelAnswer` in JSON, piece by piece; memory stays bounded.

    Once it has begun, an error can only break the response off.

    Raises:
        SourceEmpty, SourceUnreadable: it failed for that.
        Conflict: it failed for another reason, or was cancelled.
        NotFound, CorruptObject, ObjectStoreUnavailable: as for downloading the results.
    """
    failed = None if found.failure is None else _SOURCE_ERRORS.get(found.failure.code)
    if found.failure is not None and failed is not None:
        raise failed(found.failure.message, found.failure.details)
    result: BatchResult = await batch_operations.get_result(training, found.id)
    labels = await download(training.store, result.predictions_jsonl)
    return _as_answer(labels.chunks)


async def _as_answer(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b'{"data":['
    separator, rest = b"", b""
    async for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield separator + await asyncio.to_thread(_convert, lines)
            separator = b","
    yield b"]}"


def _convert(lines: list[bytes]) -> bytes:
    """The lines of `predictions.jsonl` as members of a JSON array."""
    return b",".join(_to_answer(line).model_dump_json(by_alias=True).encode() for line in lines)


def _to_answer(line: bytes) -> MichanikiLabelledImage:
    image = LabelledImage.model_validate_json(line)
    ranked = [MichanikiPrediction(label=each.label, probability=each.probability) for each in image.predictions]
    return MichanikiLabelledImage(image_name=image.path, prediction=ranked)


# --- tasks ----------------------------------------------------------------------------------------------------------


async def task_info(training: Training, principal: Principal, task_ids: list[str]) -> list[MichanikiTask]:
    """How the tasks are, in the order of their ids.

    Raises:
        NotFound: some of the ids are no task's; `details` has which.
        PermissionDenied: the key may not see one of them.
    """
    async with training.database.session() as session:
        rows = [await job_queries.find_row(session, task_id) for task_id in task_ids]
    tasks = [row for row in rows if row is not None and row.kind in _TO_READ]
    if len(tasks) < len(task_ids):
        known = {row.id for row in tasks}
        raise _unknown([task_id for task_id in task_ids if task_id not in known])
    for row in tasks:
        _check_scope(principal, row, _TO_READ)
    return [_to_task(row) for row in tasks]


async def cancel(training: Training, principal: Principal, task_id: str) -> None:
    """Asks for the task to be stopped. Asking again changes nothing.

    Raises:
        NotFound: no such task.
        PermissionDenied: the key may not cancel it.
        Conflict: it has succeeded or failed already.
    """
    async with training.database.session() as session:
        row = await job_queries.find_row(session, task_id)
    if row is None or row.kind not in _TO_CANCEL:
        raise _unknown([task_id])
    _check_scope(principal, row, _TO_CANCEL)
    await job_operations.cancel_row(training, task_id, JobKind(row.kind))


def _unknown(task_ids: list[str]) -> NotFound:
    shown = ", ".join(repr(each[:80]) for each in task_ids[:5]) + (", …" if len(task_ids) > 5 else "")
    return NotFound(
        f"no task {shown}: GET /v1/training-jobs and GET /v1/batch-predictions list what there is",
        {"task_ids": [*task_ids]},
    )


def _check_scope(principal: Principal, row: JobRow, needed: dict[JobKind, Scope]) -> None:
    scope = needed[JobKind(row.kind)]
    if not principal.may(scope):
        raise PermissionDenied(f"{row.id} needs a key with the scope {scope.value!r}", {"needed": scope.value})


def _to_task(row: JobRow) -> MichanikiTask:
    state = JobState(row.state)
    task = MichanikiTask(
        remote_task_id=row.id,
        status=_ENDED.get(state, MichanikiState.PENDING),
        state=state.value,
        reason=row.reason,
    )
    if state is not JobState.SUCCEEDED or row.kind != JobKind.TRAIN:
        return task
    metrics = None if row.metrics is None else EpochMetrics.model_validate(row.metrics)
    published = None if row.result is None else PublishedModel.model_validate(row.result)
    return task.model_copy(
        update={
            "training_accuracy": None if metrics is None else metrics.train_accuracy,
            "validation_accuracy": None if published is None else published.accuracy,
        }
    )
