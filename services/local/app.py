"""Both gateways as one web application on one base URL: `python -m services.local.app`."""

from fastapi import FastAPI

from services.inference.main import build_parts as build_inference
from services.runtime.database import Database
from services.runtime.gateway import Gateway, GatewayParts, join
from services.runtime.objects import ObjectStore
from services.runtime.settings import Settings
from services.training.main import build_parts as build_training

GRACEFUL_SHUTDOWN_S = 4


def build_parts(settings: Settings, database: Database, store: ObjectStore) -> GatewayParts:
    """The training and the inference gateway. They share the database's connections and nothing else."""
    return join([build(settings, database, store) for build in (build_training, build_inference)])


GATEWAY = Gateway(
    service="rekindle",
    title="Rekindle",
    description="Image transfer learning as a service: training that survives any interruption, and the models it "
    "makes.",
    build_parts=build_parts,
)


def build_app(settings: Settings) -> FastAPI:
    """The application alone, e.g. for its OpenAPI document."""
    return GATEWAY.build_app(settings)


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    GATEWAY.run(port=lambda settings: settings.port, graceful_shutdown_s=lambda _: GRACEFUL_SHUTDOWN_S)


if __name__ == "__main__":
    main()
