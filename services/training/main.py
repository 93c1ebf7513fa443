"""The training gateway as a process: `python -m services.training.main`."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import structlog
from fastapi import FastAPI
from sqlalchemy import select

from services.contracts import names
from services.contracts.errors import CallerError, InternalError, RetryLater
from services.contracts.ids import JobId
from services.runtime.app import StartRefused
from services.runtime.database import Database
from services.runtime.database.tables import JobRow
from services.runtime.gateway import Gateway, GatewayParts
from services.runtime.objects import ObjectStore
from services.runtime.objects.check import self_test
from services.runtime.prices import read_prices
from services.runtime.settings import Settings
from services.training.batch_predictions import routes as batch_predictions
from services.training.context import Training
from services.training.datasets import routes as datasets
from services.training.jobs import routes as jobs
from services.training.michaniki import routes as michaniki
from services.training.models import routes as models
from services.training.ray_api import HttpRayApi, RayApi
from services.training.reconciler.loop import Reconciler

SERVICE = "training"
GRACEFUL_SHUTDOWN_S = 30
TITLE = "Rekindle training gateway"
DESCRIPTION = "Datasets, training jobs, models and batch predictions. Whatever dies, an accepted job ends."

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def build_parts(settings: Settings, database: Database, store: ObjectStore, ray: RayApi | None = None) -> GatewayParts:
    """The gateway for an application that may hold others too.

    The reconciler runs in the application's lifespan. `ray` is for tests; by default the settings name the cluster.
    """
    cluster: RayApi = ray or HttpRayApi(settings.ray_dashboard_url, token=settings.ray_bearer_token)
    training = Training(settings=settings, database=database, store=store, ray=cluster)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        app.state.training = training
        await asyncio.to_thread(_check_bucket, store)
        await asyncio.to_thread(_check_prices, settings)
        await _warn_of_loss(database, store)
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
        routers=[datasets.router, jobs.router, models.router, batch_predictions.router, michaniki.router],
        lifespan=lifespan,
        tags=[datasets.TAG, jobs.TAG, models.TAG, batch_predictions.TAG, michaniki.TAG],
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


def _check_prices(settings: Settings) -> None:
    """Raises `StartRefused` for a price file that no receipt could be made with."""
    try:
        read_prices(settings.prices)
    except InternalError as error:
        raise StartRefused(error.message) from error


async def _warn_of_loss(database: Database, store: ObjectStore) -> None:
    """An empty database on a bucket with jobs is most likely a new one in the place of one that was lost."""
    try:
        async with database.session() as session:
            known = await session.scalar(select(JobRow.id).limit(1))
        left = None if known else await asyncio.to_thread(lambda: next(store.list("jobs/"), None))
    except RetryLater:
        return  # it is only a hint
    if left is not None:
        log.warning("database.empty", bucket=store.uri, hint="the bucket has jobs: stop, and run `rekindle restore`")


def _report(task: asyncio.Task[None]) -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        log.error("reconciler.died", error_type=type(error).__name__, exc_info=error)


GATEWAY = Gateway(service=SERVICE, title=TITLE, description=DESCRIPTION, build_parts=build_parts)


def build_app(settings: Settings) -> FastAPI:
    """The gateway as an application of its own."""
    return GATEWAY.build_app(settings)


def main() -> None:
    """Serves until SIGTERM or SIGINT. The reconciler's lease is given back, so another gateway leads at once."""
    GATEWAY.run(port=lambda settings: settings.port, graceful_shutdown_s=lambda _: GRACEFUL_SHUTDOWN_S)


if __name__ == "__main__":
    main()
