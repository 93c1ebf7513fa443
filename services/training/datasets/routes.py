"""HTTP for datasets."""

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from pydantic import Field

from services.contracts.base import Contract, ResourceName
from services.contracts.datasets import (
    Dataset,
    NewDataset,
    PreflightReport,
    UploadUrl,
    UploadUrls,
    UploadUrlsRequest,
)
from services.contracts.errors import (
    CallerError,
    ClassTooSmall,
    Conflict,
    DatasetEmpty,
    DatasetTooFewClasses,
    IdempotencyKeyReused,
    NotFound,
    PayloadTooLarge,
    SourceNotAllowed,
    SourceUnreadable,
    UnsupportedMediaType,
)
from services.contracts.pages import Page
from services.runtime.problems import problem_responses
from services.training.context import IdempotencyKey, Reader, Trainer, TrainingContext
from services.training.cursors import DEFAULT_PAGE_SIZE, Cursor, Limit
from services.training.datasets import operations

TAG = ("datasets", "Labelled images to train on.")
UNLIMITED_BODY = 2**62
"""Uploads have limits of their own, which are settings."""
_BINARY_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}

router = APIRouter(prefix="/v1/datasets", tags=[TAG[0]])


class FileStored(Contract):
    """A file that was stored."""

    path: str
    size_bytes: int


class ArchiveStored(Contract):
    """An archive that was unpacked."""

    file_count: int = Field(description="Files stored, hidden ones left out.")


@router.post(
    "",
    status_code=201,
    summary="Register images in a bucket, or start an upload",
    response_description="The dataset. The same one again when the Idempotency-Key was used before.",
    responses=problem_responses(
        SourceNotAllowed,
        SourceUnreadable,
        DatasetEmpty,
        DatasetTooFewClasses,
        ClassTooSmall,
        IdempotencyKeyReused,
    ),
)
async def create_dataset(
    training: TrainingContext, principal: Trainer, body: NewDataset, idempotency_key: IdempotencyKey = None
) -> Dataset:
    """Images in one folder per class, or in `train/`, `val/` and `test/` folders with one folder per class in each.

    A prefix is listed, not read: what is wrong with single images is found when a job looks at them. For an upload,
    send files or an archive next, then complete the dataset.
    """
    return await operations.create(training, principal, body, idempotency_key)


@router.get("", summary="List datasets, newest first")
async def list_datasets(
    training: TrainingContext,
    _principal: Reader,
    limit: Limit = DEFAULT_PAGE_SIZE,
    cursor: Cursor = None,
    name: Annotated[ResourceName | None, Query(description="Only datasets of this name.")] = None,
) -> Page[Dataset]:
    """All registered datasets, page by page."""
    return await operations.list_page(training, limit=limit, cursor=cursor, name=name)


@router.get("/{dataset_id}", summary="Get a dataset", responses=problem_responses(NotFound))
async def get_dataset(training: TrainingContext, _principal: Reader, dataset_id: str) -> Dataset:
    """One dataset and what its folders say."""
    return await operations.get(training, dataset_id)


@router.get("/{dataset_id}/report", summary="Get the preflight report", responses=problem_responses(NotFound))
async def get_dataset_report(training: TrainingContext, _principal: Reader, dataset_id: str) -> PreflightReport:
    """Counts, quarantined files and warnings of the last time that a job read every image."""
    return await operations.report(training, dataset_id)


@router.put(
    "/{dataset_id}/files/{path:path}",
    status_code=201,
    summary="Upload one file",
    max_body_size=UNLIMITED_BODY,
    openapi_extra=_BINARY_BODY,
    responses=problem_responses(CallerError, NotFound, Conflict, PayloadTooLarge),
)
async def put_dataset_file(
    training: TrainingContext, _principal: Trainer, dataset_id: str, path: str, request: Request
) -> FileStored:
    """The raw body becomes the file `path`: `<class>/<file>` or `<split>/<class>/<file>`.

    Sending a file again replaces it.
    """
    size_bytes = await operations.put_file(training, dataset_id, path, request)
    return FileStored(path=path, size_bytes=size_bytes)


@router.put(
    "/{dataset_id}/archive",
    status_code=201,
    summary="Upload an archive",
    max_body_size=UNLIMITED_BODY,
    openapi_extra=_BINARY_BODY,
    responses=problem_responses(CallerError, NotFound, Conflict, PayloadTooLarge, UnsupportedMediaType),
)
async def put_dataset_archive(
    training: TrainingContext, _principal: Trainer, dataset_id: str, request: Request
) -> ArchiveStored:
    """A zip or tar (also .gz, .bz2, .xz) as the raw body. A folder that wraps everything is left out.

    Nothing of an archive with links, paths that leave it, or more than the limits is stored. Archives add to what
    was uploaded before.
    """
    return ArchiveStored(file_count=await operations.put_archive(training, dataset_id, request))


@router.post(
    "/{dataset_id}/upload-urls",
    summary="Get URLs to upload files to",
    responses=problem_responses(CallerError, NotFound, Conflict),
)
async def create_upload_urls(
    training: TrainingContext, _principal: Trainer, dataset_id: str, body: UploadUrlsRequest, request: Request
) -> UploadUrls:
    """Where the bucket is in S3, files go straight to it; otherwise to this server. Used the same way."""
    presigned = await operations.presign(training, dataset_id, body.paths)
    base = training.settings.public_url or str(request.base_url).rstrip("/")
    own = f"{base}{router.prefix}/{dataset_id}/files/"
    urls = [
        UploadUrl(path=path, url=presigned[path] or own + quote(path), method="PUT", needs_key=presigned[path] is None)
        for path in body.paths
    ]
    return UploadUrls(urls=urls)


@router.post(
    "/{dataset_id}/complete",
    summary="Complete an upload",
    responses=problem_responses(NotFound, DatasetEmpty, DatasetTooFewClasses, ClassTooSmall),
)
async def complete_dataset(training: TrainingContext, _principal: Trainer, dataset_id: str) -> Dataset:
    """Looks at what was uploaded and makes the dataset ready to train on. Completing again changes nothing."""
    return await operations.complete(training, dataset_id)
