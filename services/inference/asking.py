"""What every question to a model has in common: which version it is for, and what may come of it."""

from typing import Annotated

from fastapi import Query
from fastapi.exceptions import RequestValidationError

from services.contracts.base import ResourceName
from services.contracts.errors import (
    CallerError,
    DatabaseUnavailable,
    ImageRejected,
    ModelLoading,
    NotFound,
    ObjectStoreUnavailable,
    Overloaded,
    PayloadTooLarge,
    RekindleError,
    SourceNotAllowed,
    SourceUnreadable,
    UnsupportedMediaType,
)
from services.inference.predict.queries import VersionChoice

Version = Annotated[int | None, Query(ge=1, le=2**31 - 1, description="Default: the latest version.")]
Alias = Annotated[ResourceName | None, Query(description="Instead of `version`.")]

ERRORS: tuple[type[RekindleError], ...] = (
    CallerError,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
    ImageRejected,
    SourceNotAllowed,
    SourceUnreadable,
    ModelLoading,
    Overloaded,
    ObjectStoreUnavailable,
    DatabaseUnavailable,
)


def invalid(part: str, field: str, message: str) -> RequestValidationError:
    """A part of the request, e.g. `query`, has a field that does not fit."""
    return RequestValidationError([{"type": "value_error", "loc": (part, field), "msg": message}])


def choice_of(model_name: str, version: int | None, alias: str | None) -> VersionChoice:
    """Raises `RequestValidationError` where both are given."""
    if version is not None and alias is not None:
        raise invalid("query", "alias", "give `version` or `alias`, not both")
    return VersionChoice(model_name, version, alias)
