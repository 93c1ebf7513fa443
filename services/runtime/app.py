"""The web application that every gateway is: routes of its own on what all of them have."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, cast

import structlog
from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.types import ASGIApp

from services.contracts.errors import RekindleError, RetryLater
from services.contracts.health import Health, Readiness
from services.runtime.auth import KeyVerifier, has_keys
from services.runtime.database import Database
from services.runtime.middleware import RequestContext
from services.runtime.problems import MEDIA_TYPE, PROBLEM_SCHEMA, Problem, install_problem_handlers, problem_responses
from services.runtime.settings import Settings

READINESS_TIMEOUT_S = 5
OPERATIONS_TAG = "operations"

ReadinessCheck = Callable[[], Awaitable[None]]
"""Returns when the thing can be used; raises an error of ours, `OSError` or `TimeoutError` when it cannot."""

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class StartRefused(RuntimeError):
    """The process must not serve with these settings. The message says what to change."""


class _Gateway(FastAPI):
    """FastAPI with the request context outside of everything, its error handling included."""

    def __init__(self, service: str, around: Sequence[Callable[[ASGIApp], ASGIApp]], **options: Any) -> None:
        self._service = service
        self._around = around
        super().__init__(**options)

    def build_middleware_stack(self) -> ASGIApp:
        app = super().build_middleware_stack()
        for middleware in reversed(self._around):
            app = middleware(app)
        return RequestContext(app, self._service)


def create_app(
    *,
    service: str,
    title: str,
    description: str,
    version: str,
    settings: Settings,
    routers: Sequence[APIRouter],
    database: Database,
    tags: Sequence[tuple[str, str]] = (),
    lifespan: Lifespan | None = None,
    middleware: Sequence[Callable[[ASGIApp], ASGIApp]] = (),
    readiness: Mapping[str, ReadinessCheck] | None = None,
    dependencies: Mapping[str, ReadinessCheck] | None = None,
) -> FastAPI:
    """A gateway.

    At start it brings the database up to date and enters `lifespan`; at the end it leaves it and closes the database.

    Args:
        service: The gateway's short name in metrics and logs, e.g. `training`.
        routers: Their routes' functions name the operations, so the names must differ.
        tags: Name and description of each tag that the routes use.
        lifespan: What runs beside the requests. `app.state.settings` and `app.state.database` are there before.
        middleware: Around all of it but the request context, the first outermost.
        readiness: What `/readyz` asks besides the database, by name. Each has `READINESS_TIMEOUT_S`.
        dependencies: What `/readyz` asks and only reports: the gateway is ready without it.

    Starting raises `StartRefused` when keys are required and there is none.
    """
    app = _Gateway(
        service,
        middleware,
        title=title,
        description=description,
        version=version,
        lifespan=_lifespan(settings, database, lifespan),
        max_body_size=settings.max_request_bytes,
        generate_unique_id_function=_operation_id,
        openapi_tags=[
            *({"name": name, "description": text} for name, text in tags),
            {"name": OPERATIONS_TAG, "description": "For those who run Rekindle."},
        ],
    )
    app.state.settings = settings
    app.state.database = database
    app.state.key_verifier = KeyVerifier(database) if settings.api_keys_required else None
    install_problem_handlers(app)
    app.include_router(
        _operations_router(version, {"database": database.ping, **(readiness or {})}, dependencies or {})
    )
    for router in routers:
        app.include_router(router)
    _describe(app, keys_required=settings.api_keys_required)
    return app


def _operation_id(route: APIRoute) -> str:
    return route.name


def _lifespan(settings: Settings, database: Database, inner: Lifespan | None) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            stack.push_async_callback(database.close)
            await database.migrate()
            if settings.api_keys_required and not await has_keys(database):
                raise StartRefused(
                    f"REKINDLE_HOST={settings.host} can be reached from other machines and there is no API key: "
                    "create one with `rekindle keys create`, or bind 127.0.0.1"
                )
            if inner is not None:
                await stack.enter_async_context(inner(app))
            yield

    return lifespan


# --- health and metrics ---------------------------------------------------------------------------------------------


def _operations_router(
    release: str, checks: Mapping[str, ReadinessCheck], dependencies: Mapping[str, ReadinessCheck]
) -> APIRouter:
    router = APIRouter(tags=[OPERATIONS_TAG])

    @router.get("/healthz", summary="Whether the process runs")
    async def get_health() -> Health:
        """Answers as long as the process does, whatever else is down."""
        return Health(release=release)

    @router.get("/readyz", summary="Whether requests can be answered", responses=problem_responses(RetryLater))
    async def get_readiness() -> Readiness:
        """Asks everything that requests need, and names what does not answer."""
        failed, unavailable = await asyncio.gather(_failures(checks), _failures(dependencies))
        if failed:
            shown = "; ".join(f"{name}: {reason}" for name, reason in failed.items())
            raise RetryLater(f"not ready: {shown}", {"failed": dict(failed)})
        return Readiness(checks=list(checks), unavailable=unavailable)

    @router.get("/metrics", include_in_schema=False)
    async def get_metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    # The decorators have registered them.
    del get_health, get_readiness, get_metrics
    return router


async def _failures(checks: Mapping[str, ReadinessCheck]) -> dict[str, str]:
    """Why not, by the names of the checks that failed."""
    results = await asyncio.gather(*(_check(check) for check in checks.values()))
    return {name: reason for name, reason in zip(checks, results, strict=True) if reason is not None}


async def _check(check: ReadinessCheck) -> str | None:
    """None, or why not."""
    try:
        async with asyncio.timeout(READINESS_TIMEOUT_S):
            await check()
    except TimeoutError:
        return f"no answer within {READINESS_TIMEOUT_S} s"
    except RekindleError as error:
        return error.message
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


# --- OpenAPI --------------------------------------------------------------------------------------------------------


def _describe(app: FastAPI, *, keys_required: bool) -> None:
    """Every operation may answer with a problem; the framework's own validation error is never sent."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _with_problems(generate(), keys_required=keys_required)
        return app.openapi_schema

    app.openapi = openapi


def _with_problems(document: dict[str, Any], *, keys_required: bool) -> dict[str, Any]:
    components: dict[str, Any] = document.setdefault("components", {})
    schemas: dict[str, Any] = components.setdefault("schemas", {})
    schemas.pop("HTTPValidationError", None)
    schemas.pop("ValidationError", None)
    problem = Problem.model_json_schema(mode="serialization", ref_template="#/components/schemas/{model}")
    schemas |= {**cast("dict[str, Any]", problem.pop("$defs")), "Problem": problem}
    components["schemas"] = dict(sorted(schemas.items()))
    if keys_required:
        components["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer", "description": "An API key, `rk_…`."},
            "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        }
        document["security"] = [{"bearer": []}, {"apiKey": []}]
    for path in cast("dict[str, dict[str, Any]]", document["paths"]).values():
        for operation in path.values():
            _describe_operation(cast("dict[str, Any]", operation), keys_required=keys_required)
    return document


def _describe_operation(operation: dict[str, Any], *, keys_required: bool) -> None:
    content = {MEDIA_TYPE: {"schema": {"$ref": PROBLEM_SCHEMA}}}
    responses: dict[str, Any] = operation["responses"]
    invalid = responses.get("422")
    if invalid is not None and MEDIA_TYPE not in invalid.get("content", {}):
        invalid |= {
            "description": "`validation_failed`: the request does not have the expected form",
            "content": content,
        }
    responses["default"] = {"description": "Any other problem", "content": content}
    if keys_required and OPERATIONS_TAG in operation.get("tags", []):
        operation["security"] = []
