"""Both gateways as one web application on one base URL: `python -m services.local.app`."""

from importlib.metadata import version

from fastapi import FastAPI

from services.inference.main import build_parts as build_inference
from services.runtime.app import create_app
from services.runtime.database import Database
from services.runtime.gateway import GatewayParts, join
from services.runtime.logging import configure_logging
from services.runtime.objects import open_store
from services.runtime.server import serve
from services.runtime.settings import Settings
from services.training.main import build_parts as build_training

SERVICE = "rekindle"
TITLE = "Rekindle"
DESCRIPTION = "Image transfer learning as a service: training that survives any interruption, and the models it makes."
GRACEFUL_SHUTDOWN_S = 4


def build_app_and_parts(settings: Settings) -> tuple[FastAPI, GatewayParts]:
    """The training and the inference gateway in one process. They share the database's connections and nothing else."""
    database = Database(settings.database_url)
    store = open_store(settings.bucket_uri)
    parts = join([build(settings, database, store) for build in (build_training, build_inference)])
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


def build_app(settings: Settings) -> FastAPI:
    """The application alone, e.g. for its OpenAPI document."""
    return build_app_and_parts(settings)[0]


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = Settings()
    configure_logging(settings)
    app, parts = build_app_and_parts(settings)
    serve(
        app,
        host=settings.host,
        port=settings.port,
        end_streams=parts.end_streams,
        graceful_shutdown_s=GRACEFUL_SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
