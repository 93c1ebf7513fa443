"""HTTP for models."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse

from services.contracts.aliases import AliasChange, ModelAlias
from services.contracts.base import ResourceName
from services.contracts.errors import (
    CallerError,
    ClusterUnavailable,
    Conflict,
    ExportFailed,
    NotFound,
    ObjectStoreUnavailable,
)
from services.contracts.exports import ExportFormat, ExportStatus
from services.contracts.models import Model, ModelVersion
from services.contracts.pages import Page
from services.runtime.problems import problem_responses
from services.training.context import Reader, Trainer, TrainingContext
from services.training.cursors import DEFAULT_PAGE_SIZE, Cursor, Limit
from services.training.models import exports, operations

TAG = ("models", "Published models, their versions, and the aliases that promote and roll back.")

router = APIRouter(prefix="/v1/models", tags=[TAG[0]])

ARCHIVE = "application/octet-stream"
"""A zip archive, by a name that generated clients take for bytes."""

Alias = Annotated[ResourceName, Path(examples=["production"])]
_ARCHIVE: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "A zip archive: the model, `labels.txt`, `model.json` and how to load it.",
        "content": {ARCHIVE: {"schema": {"type": "string", "format": "binary"}}},
    },
    202: {
        "model": ExportStatus,
        "description": "The archive is being built: ask again.",
        "headers": {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}},
    },
}


@router.get("", summary="List models, newest first")
async def list_models(
    training: TrainingContext, _principal: Reader, limit: Limit = DEFAULT_PAGE_SIZE, cursor: Cursor = None
) -> Page[Model]:
    """All models that have a version, the one published to last first."""
    return await operations.list_models(training, limit=limit, cursor=cursor)


@router.get("/{model_name}", summary="Get a model", responses=problem_responses(NotFound))
async def get_model(training: TrainingContext, _principal: Reader, model_name: str) -> Model:
    """The latest version and the aliases."""
    return await operations.get_model(training, model_name)


@router.get(
    "/{model_name}/versions", summary="List a model's versions, newest first", responses=problem_responses(NotFound)
)
async def list_model_versions(
    training: TrainingContext,
    _principal: Reader,
    model_name: str,
    limit: Limit = DEFAULT_PAGE_SIZE,
    cursor: Cursor = None,
) -> Page[ModelVersion]:
    """Versions with their evaluation."""
    return await operations.list_versions(training, model_name, limit=limit, cursor=cursor)


@router.get("/{model_name}/versions/{version}", summary="Get a version", responses=problem_responses(NotFound))
async def get_model_version(
    training: TrainingContext, _principal: Reader, model_name: str, version: int
) -> ModelVersion:
    """Labels, evaluation with the confusion matrix, and where the version came from."""
    return await operations.get_version(training, model_name, version)


@router.delete(
    "/{model_name}/versions/{version}",
    status_code=204,
    summary="Delete a version",
    responses=problem_responses(NotFound, Conflict),
)
async def delete_model_version(training: TrainingContext, _principal: Trainer, model_name: str, version: int) -> None:
    """It is no longer shown or served, and its number is never used again.

    A version that an alias refers to stays, whether it answers or is only scored.
    """
    await operations.delete_version(training, model_name, version)


@router.get(
    "/{model_name}/versions/{version}/export",
    summary="Download a version for other programs",
    response_class=StreamingResponse,
    responses={
        **_ARCHIVE,
        **problem_responses(NotFound, ExportFailed, ClusterUnavailable, ObjectStoreUnavailable),
    },
)
async def export_model_version(
    training: TrainingContext,
    _principal: Reader,
    model_name: str,
    version: int,
    format: Annotated[ExportFormat, Query(description="Of the model in the archive.")],
) -> Response:
    """One archive with all that a program needs to classify images as Rekindle does, without Rekindle.

    The first time that a format is asked for, the archive is built on the cluster, which takes up to some minutes and
    is answered with 202. It is kept as long as the version. `ETag` is the archive's SHA-256. A build that failed is
    answered with what was wrong for a minute; then whoever asks starts another.
    """
    found = await exports.export(training, model_name, version, format)
    if isinstance(found, ExportStatus):
        headers = {"Retry-After": str(found.retry_after_s)}
        return JSONResponse(found.model_dump(mode="json"), 202, headers)
    headers = found.headers(exports.archive_name(model_name, version, format))
    return StreamingResponse(found.chunks, media_type=ARCHIVE, headers=headers)


@router.put(
    "/{model_name}/aliases/{alias}",
    summary="Point an alias at a version",
    responses=problem_responses(CallerError, NotFound, Conflict),
)
async def put_model_alias(
    training: TrainingContext, _principal: Trainer, model_name: str, alias: Alias, body: AliasChange
) -> ModelAlias:
    """Promotes or rolls back, only if nobody else has moved the alias since where the body says what it refers to.

    A second version may stand beside the first: with `split` it answers a share of the requests, with `shadow` it is
    scored on the same images and never answers. A body without either ends what there was.
    """
    return await operations.put_alias(training, model_name, alias, body)


@router.delete(
    "/{model_name}/aliases/{alias}", status_code=204, summary="Delete an alias", responses=problem_responses(NotFound)
)
async def delete_model_alias(training: TrainingContext, _principal: Trainer, model_name: str, alias: Alias) -> None:
    """The version it refers to stays."""
    await operations.delete_alias(training, model_name, alias)
