"""HTTP for models."""

from typing import Annotated

from fastapi import APIRouter, Path

from services.contracts.aliases import AliasChange, ModelAlias
from services.contracts.base import ResourceName
from services.contracts.errors import CallerError, Conflict, NotFound
from services.contracts.models import Model, ModelVersion
from services.contracts.pages import Page
from services.runtime.problems import problem_responses
from services.training.context import Reader, Trainer, TrainingContext
from services.training.cursors import DEFAULT_PAGE_SIZE, Cursor, Limit
from services.training.models import operations

TAG = ("models", "Published models, their versions, and the aliases that promote and roll back.")

router = APIRouter(prefix="/v1/models", tags=[TAG[0]])

Alias = Annotated[ResourceName, Path(examples=["production"])]


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
