"""The inference gateway as a process of its own: `python -m services.inference.main`."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from services.inference.context import Inference
from services.inference.direct import ReplicaAddresses
from services.inference.explain import routes as explain_routes
from services.inference.explain.operations import Explainer
from services.inference.predict import measures, michaniki, routes
from services.inference.predict.admission import Admission
from services.inference.predict.operations import Predictor
from services.inference.predict.resolution import Resolver, database_generation, database_lookup
from services.inference.predict.shadows import Shadows
from services.inference.replicas import Replicas
from services.runtime.database import Database
from services.runtime.gateway import Gateway, GatewayParts
from services.runtime.objects import ObjectStore
from services.runtime.settings import Settings

SERVICE = "inference"
TITLE = "Rekindle inference"
DESCRIPTION = "Labels for images by published models, and what they rest on, through Ray Serve."
GRACEFUL_SHUTDOWN_EXTRA_S = 2


def build_parts(settings: Settings, database: Database, store: ObjectStore) -> GatewayParts:
    """The gateway's routes and what they need. Nothing is connected before the lifespan is entered.

    Every gateway is built from these three; this one leaves the bucket to the replicas.
    """
    del store
    addresses = ReplicaAddresses(settings.ray_dashboard_url, token=settings.ray_bearer_token)
    replicas = Replicas(settings.serve_url, addresses, max_replicas=settings.serve_max_replicas)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        resolver = Resolver(database_lookup(database), database_generation(database))
        shadows = Shadows(replicas)
        predictor = Predictor(resolver, replicas, shadows, settings.predict_deadline_s)
        measures.WAITING.set_function(replicas.waiting_count)
        addresses.start()
        explainer = Explainer(resolver, replicas, settings.predict_deadline_s)
        app.state.inference = Inference(settings, predictor, explainer)
        try:
            yield
        finally:
            await shadows.aclose()
            await replicas.aclose()

    return GatewayParts(
        routers=[
            build(settings) for build in (routes.build_router, explain_routes.build_router, michaniki.build_router)
        ],
        lifespan=lifespan,
        middleware=[Admission],
        tags=[routes.TAG, michaniki.TAG],
        dependencies={"serve": replicas.check},
    )


GATEWAY = Gateway(service=SERVICE, title=TITLE, description=DESCRIPTION, build_parts=build_parts)


def build_app(settings: Settings) -> FastAPI:
    """The gateway alone."""
    return GATEWAY.build_app(settings)


def main() -> None:
    """Serves until SIGTERM or SIGINT; requests in progress are answered first."""
    GATEWAY.run(
        port=lambda settings: settings.inference_port,
        graceful_shutdown_s=lambda settings: int(settings.predict_deadline_s) + GRACEFUL_SHUTDOWN_EXTRA_S,
    )


if __name__ == "__main__":
    main()
