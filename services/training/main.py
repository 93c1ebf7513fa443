"""The training gateway as a process: `python -m services.training.main`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

import structlog
from fastapi import FastAPI

from services.contracts import names
from services.contracts.errors import CallerError, RetryLater
from services.contracts.ids import JobId
from services.runtime.app import StartRefused, create_app
from services.runtime.database import Database
from services.runtime.gateway import GatewayParts
from services.runtime.logging import configure_logging
from services.runtime.objects import ObjectStore, open_store
from services.runtime.objects.check import self_test
from services.runtime.server import serve
from services.runtime.settings import Settings
from services.training.context import Training
from services.training.datasets import routes as datasets
from services.training.jobs import routes as jobs
from services.training.models import routes as models
from services.training.ray_api import HttpRayApi, RayApi
from services.training.reconciler.loop import Reconciler

SERVICE = "training"
GRACEFUL_SHUTDOWN_S = 30
TITLE = "Rekindle training gateway"
DESCRIPTION = "Datasets, training jobs and models. Whatever dies, an accepted job ends."

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def build_parts(settings: Settings, database: Database, store: ObjectStore, ray: RayApi | None = None) -> GatewayParts:
    """The gateway for an application that may hold others too.

    The reconciler runs in the application's lifespan. `ray` is for tests; by default the settings name the cluster.
    """
    token = None if settings.ray_token is None else settings.ray_token.get_secret_value()
    cluster: RayApi = HttpRayApi(settings.ray_dashboard_url, token=token) if ray is None else ray
    training = Training(settings=settings, database=database, store=store, ray=cluster)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        app.state.training = training
        await asyncio.to_thread(_check_bucket, store)
        reconciling = asyncio.create_task(Reconciler(training).run(), name="reconciler")
        reconciling.add_done_callback(_report)
        try:
            yield
        finally:
            end_streams()
            reconciling.cancel()
            await asyncio.wait([reconciling])
            if isinstance(cluster, HttpRayApi):
                await cluster.aclose()

    def end_streams() -> None:
        training.ending.set()
        training.changed.send()

    async def bucket_answers() -> None:
        await asyncio.to_thread(store.head, names.job_spec(JobId("job_" + "0" * 24)))

    async def cluster_answers() -> None:
        await cluster.job("readiness")

    return GatewayParts(
        routers=[datasets.router, jobs.router, models.router],
        lifespan=lifespan,
        tags=[datasets.TAG, jobs.TAG, models.TAG],
        readiness={"bucket": bucket_answers},
        dependencies={"ray": cluster_answers},
        end_streams=end_streams,
    )


def _check_bucket(store: ObjectStore) -> None:
    """Refuses to start on a store that jobs cannot be trusted to; one that does not answer at the moment is no reason.

    Raises `StartRefused`.
    """
    try:
        self_test(store)
    except CallerError as error:
        raise StartRefused(error.message) from error
    except RetryLater as error:
        log.warning("bucket.unchecked", reason=error.message)


def _report(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("reconciler.died", error_type=type(error).__name__, exc_info=error)


def build_app(settings: Settings) -> FastAPI:
    """The gateway as an application of its own."""
    return _build(settings)[0]


def _build(settings: Settings) -> tuple[FastAPI, GatewayParts]:
    database = Database(settings.database_url)
    parts = build_parts(settings, database, open_store(settings.bucket_uri))
    app = create_app(
        service=SERVICE,
        title=TITLE,
        description=DESCRIPTION,
        version=version("rekindle"),
        settings=settings,
        routers=parts.routers,
        database=database,
        tags=parts.tags,
        lifespan=parts.lifespan,
        readiness=parts.readiness,
        dependencies=parts.dependencies,
    )
    return app, parts


def main() -> None:
    """Serves until SIGTERM or SIGINT. The reconciler's lease is given back, so another gateway leads at once."""
    settings = Settings()
    configure_logging(settings)
    app, parts = _build(settings)
    serve(
        app,
        host=settings.host,
        port=settings.port,
        end_streams=parts.end_streams,
        graceful_shutdown_s=GRACEFUL_SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
