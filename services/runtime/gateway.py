"""What a gateway brings to the application that it runs in, so that one process can hold one gateway or several."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version

from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from services.runtime.app import Lifespan, ReadinessCheck, create_app
from services.runtime.database import Database
from services.runtime.logging import configure_logging
from services.runtime.objects import ObjectStore, open_store
from services.runtime.server import serve
from services.runtime.settings import Settings


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """One gateway, ready for `create_app`."""

    routers: Sequence[APIRouter]
    lifespan: Lifespan
    """Puts what its routes need on `app.state`, runs the background work, and ends it."""
    tags: Sequence[tuple[str, str]] = ()
    middleware: Sequence[Callable[[ASGIApp], ASGIApp]] = ()
    """Around the application, the first outermost; sees every request before it is routed."""
    readiness: Mapping[str, ReadinessCheck] = field(default_factory=dict[str, ReadinessCheck])
    dependencies: Mapping[str, ReadinessCheck] = field(default_factory=dict[str, ReadinessCheck])
    """What `/readyz` reports without failing: most requests do without it."""
    end_streams: Callable[[], None] = _nothing
    """Ends responses that would go on for minutes. Call it when the server stops, before it waits for its requests."""


def join(parts: Sequence[GatewayParts]) -> GatewayParts:
    """Several gateways as one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            for part in parts:
                await stack.enter_async_context(part.lifespan(app))
            yield

    def end_streams() -> None:
        for part in parts:
            part.end_streams()

    return GatewayParts(
        routers=[router for part in parts for router in part.routers],
        lifespan=lifespan,
        tags=list(dict.fromkeys(tag for part in parts for tag in part.tags)),
        middleware=[middleware for part in parts for middleware in part.middleware],
        readiness={name: check for part in parts for name, check in part.readiness.items()},
        dependencies={name: check for part in parts for name, check in part.dependencies.items()},
        end_streams=end_streams,
    )


@dataclass(frozen=True, slots=True)
class Gateway:
    """A kind of gateway process."""

    service: str
    """Its name in logs and metrics."""
    title: str
    description: str
    build_parts: Callable[[Settings, Database, ObjectStore], GatewayParts]

    def build_app(self, settings: Settings) -> FastAPI:
        """The application alone, e.g. for its OpenAPI document or for tests."""
        return self._build(settings)[0]

    def run(self, *, port: Callable[[Settings], int], graceful_shutdown_s: Callable[[Settings], int]) -> None:
        """The whole process: settings from the environment, logs, and requests until SIGTERM or SIGINT.

        Raises `SystemExit` when the application cannot start.
        """
        settings = Settings()
        configure_logging(settings)
        app, parts = self._build(settings)
        serve(
            app,
            host=settings.host,
            port=port(settings),
            end_streams=parts.end_streams,
            graceful_shutdown_s=graceful_shutdown_s(settings),
            tls=settings.tls,
        )

    def _build(self, settings: Settings) -> tuple[FastAPI, GatewayParts]:
        database = Database(settings.database_url)
        parts = self.build_parts(settings, database, open_store(settings.bucket_uri))
        app = create_app(
            service=self.service,
            title=self.title,
            description=self.description,
            version=version("rekindle"),
            settings=settings,
            routers=parts.routers,
            database=database,
            tags=parts.tags,
            lifespan=parts.lifespan,
            middleware=parts.middleware,
            readiness=parts.readiness,
            dependencies=parts.dependencies,
        )
        return app, parts
