"""Errors as HTTP shows them: RFC 9457 problem details. The one place where an error's code meets a status."""

import http
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from services.contracts.errors import Overloaded, RekindleError, RetryLater, Unauthenticated

MEDIA_TYPE = "application/problem+json"
VALIDATION_FAILED = "validation_failed"
PROBLEM_SCHEMA = "#/components/schemas/Problem"
CLIENT_GONE = 499
"""Logged and counted where the client went away before its answer; no client ever gets it."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class ProblemKind:
    """What all problems with one code have in common."""

    status: int
    title: str


PROBLEM_KINDS: Mapping[str, ProblemKind] = {
    "invalid_request": ProblemKind(400, "The request cannot be carried out"),
    VALIDATION_FAILED: ProblemKind(422, "The request does not have the expected form"),
    "unauthenticated": ProblemKind(401, "A valid API key is needed"),
    "permission_denied": ProblemKind(403, "The API key does not permit this"),
    "not_found": ProblemKind(404, "There is no such resource"),
    "method_not_allowed": ProblemKind(405, "The resource does not support this method"),
    "conflict": ProblemKind(409, "The resource's state does not allow this"),
    "idempotency_key_reused": ProblemKind(422, "The Idempotency-Key was used for another request"),
    "payload_too_large": ProblemKind(413, "The body is too large"),
    "unsupported_media_type": ProblemKind(415, "The body's type is not supported"),
    "source_not_allowed": ProblemKind(403, "The location is not among those this server may read"),
    "source_unreadable": ProblemKind(422, "The location cannot be read"),
    "source_empty": ProblemKind(422, "The location has no files"),
    "dataset_empty": ProblemKind(422, "The dataset has no images"),
    "dataset_too_few_classes": ProblemKind(422, "The dataset has too few classes"),
    "class_too_small": ProblemKind(422, "A class has too few images"),
    "too_many_quarantined": ProblemKind(422, "Too many files cannot be used"),
    "dataset_not_ready": ProblemKind(409, "The dataset's upload is not complete"),
    "image_rejected": ProblemKind(422, "The image cannot be used"),
    "label_unknown": ProblemKind(422, "The model has no such label"),
    "parent_unusable": ProblemKind(422, "The parent version cannot be trained on"),
    "weights_unusable": ProblemKind(422, "The weights cannot be used"),
    "export_failed": ProblemKind(409, "The export could not be built"),
    "unavailable": ProblemKind(503, "Not available at the moment"),
    "object_store_unavailable": ProblemKind(503, "The object store is not available at the moment"),
    "database_unavailable": ProblemKind(503, "The database is not available at the moment"),
    "cluster_unavailable": ProblemKind(503, "The cluster is not available at the moment"),
    "model_loading": ProblemKind(503, "The model is still loading"),
    "overloaded": ProblemKind(503, "Too many requests at the moment"),
    "internal_error": ProblemKind(500, "Something went wrong on the server"),
    "corrupt_object": ProblemKind(500, "A stored object is damaged"),
    "fenced": ProblemKind(409, "A newer attempt has taken over"),
}

_CODE_OF_STATUS = {
    401: "unauthenticated",
    403: "permission_denied",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "payload_too_large",
    415: "unsupported_media_type",
    422: VALIDATION_FAILED,
    503: "unavailable",
}
"""Codes for the errors that the web framework raises by itself."""


class InvalidField(BaseModel):
    """One part of a request that does not have the expected form."""

    location: list[str | int] = Field(
        description="`body`, `query`, `path` or `header`, then the way down to the field."
    )
    message: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="`urn:rekindle:problem:` and the code.")
    title: str = Field(description="The same for every problem with this code.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What was wrong and what to do.")
    instance: str = Field(description="The request's path.")
    code: str = Field(description="Stable, for programs.")
    request_id: str | None = Field(default=None, description="Names this request in the server's logs.")
    details: dict[str, JsonValue] = Field(default_factory=dict, description="Depends on the code.")
    errors: list[InvalidField] = Field(
        default_factory=list[InvalidField], description="Each field that does not fit, for `validation_failed`."
    )


def request_id_of(request: Request) -> str | None:
    """The id that the request-context middleware gave the request."""
    value = getattr(request.state, "request_id", None)
    return value if isinstance(value, str) else None


def make_problem(
    request: Request,
    code: str,
    detail: str,
    *,
    status: int | None = None,
    details: dict[str, JsonValue] | None = None,
    errors: list[InvalidField] | None = None,
) -> Problem:
    """A problem of the code's kind. `status` is for the framework's own errors that share a code."""
    kind = PROBLEM_KINDS[code]
    return Problem(
        type=f"urn:rekindle:problem:{code}",
        title=kind.title,
        status=status or kind.status,
        detail=detail,
        instance=request.scope["path"],
        code=code,
        request_id=request_id_of(request),
        details=details or {},
        errors=errors or [],
    )


def problem_response(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """The problem as a response."""
    return Response(problem.model_dump_json(), problem.status, dict(headers or {}), MEDIA_TYPE)


def problem_of(request: Request, error: RekindleError) -> Problem:
    """The problem that an error of ours shows as. A bug's message stays in the log."""
    if PROBLEM_KINDS[error.code].status == http.HTTPStatus.INTERNAL_SERVER_ERROR:
        return make_problem(request, error.code, _internal_detail(request))
    return make_problem(request, error.code, error.message, details=error.details)


def report(request: Request, error: Exception) -> Problem:
    """The problem that any error shows as, with what only the operator may see in the log."""
    if not isinstance(error, RekindleError):
        log.error("http.unhandled_error", error_type=type(error).__name__, exc_info=error)
        return make_problem(request, "internal_error", _internal_detail(request))
    problem = problem_of(request, error)
    if isinstance(error, Overloaded):
        # Of these there are most when there is least time; the request's own line has the status.
        log.debug("http.overloaded", reason=error.message)
    elif isinstance(error, RetryLater):
        log.warning("http.retry_later", code=error.code, reason=error.message, exc_info=error.__cause__)
    elif problem.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("http.internal_error", code=error.code, reason=error.message, exc_info=error)
    return problem


def _internal_detail(request: Request) -> str:
    return f"The request is not at fault. The server's log has the cause under request id {request_id_of(request)}."


def error_response(request: Request, error: RekindleError) -> Response:
    """The response that an error of ours shows as."""
    problem = report(request, error)
    headers: dict[str, str] = {}
    if isinstance(error, RetryLater):
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = 'Bearer realm="rekindle"'
    return problem_response(problem, headers)


async def _on_rekindle_error(request: Request, error: RekindleError) -> Response:
    return error_response(request, error)


async def _on_invalid_request(request: Request, error: RequestValidationError) -> Response:
    errors = [
        InvalidField(location=list(item["loc"]), message=str(item["msg"]).removeprefix("Value error, "))
        for item in error.errors()
    ]
    shown = "; ".join(f"{'.'.join(str(part) for part in item.location)}: {item.message}" for item in errors[:3])
    more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
    return problem_response(make_problem(request, VALIDATION_FAILED, f"{shown}{more}", errors=errors))


async def _on_framework_error(request: Request, error: HTTPException) -> Response:
    default = "internal_error" if error.status_code >= http.HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request"
    code = _CODE_OF_STATUS.get(error.status_code, default)
    detail = error.detail
    if error.status_code == http.HTTPStatus.NOT_FOUND and detail == http.HTTPStatus.NOT_FOUND.phrase:
        detail = f"nothing is at {request.url.path}: /docs lists what there is"
    if error.status_code == http.HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.url.path} does not support {request.method}: use {allowed}"
    return problem_response(make_problem(request, code, detail, status=error.status_code), error.headers)


async def _on_client_gone(_request: Request, _error: ClientDisconnect) -> Response:
    """Nobody gets it: for the log and the metrics."""
    return Response(status_code=CLIENT_GONE)


async def _on_unhandled(request: Request, error: Exception) -> Response:
    return problem_response(report(request, error))


def install_problem_handlers(app: FastAPI) -> None:
    """Makes every error of the application a problem."""
    app.exception_handler(RekindleError)(_on_rekindle_error)
    app.exception_handler(RequestValidationError)(_on_invalid_request)
    app.exception_handler(HTTPException)(_on_framework_error)
    app.exception_handler(ClientDisconnect)(_on_client_gone)
    app.exception_handler(Exception)(_on_unhandled)


def problem_responses(*errors: type[RekindleError]) -> dict[int | str, dict[str, object]]:
    """For a route's `responses=`: documents the problems that it answers with, by status."""
    codes: dict[int, list[str]] = {}
    for error in errors:
        codes.setdefault(PROBLEM_KINDS[error.code].status, []).append(error.code)
    return {
        status: {
            "description": "; ".join(f"`{code}`: {PROBLEM_KINDS[code].title}" for code in sorted(set(of_status))),
            "content": {MEDIA_TYPE: {"schema": {"$ref": PROBLEM_SCHEMA}}},
        }
        for status, of_status in sorted(codes.items())
    }
