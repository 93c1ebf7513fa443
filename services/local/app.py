"""Both gateways as one web application on one base URL: `python -m services.local.app`."""

from importlib.metadata import version

import uvicorn
from fastapi import FastAPI

from services.runtime.app import create_app
from services.runtime.database import Database
from services.runtime.logging import configure_logging
from services.runtime.settings import Settings

TITLE = "Rekindle"
DESCRIPTION = "Image transfer learning as a service that never loses work."
GRACEFUL_SHUTDOWN_S = 4


def build_app(settings: Settings) -> FastAPI:
    """The training and the inference gateway in one process. They share the database's connections and nothing else."""
    database = Database(settings.database_url)
    return create_app(
        service="rekindle",
        title=TITLE,
        description=DESCRIPTION,
        version=version("rekindle"),
        settings=settings,
        routers=[],
        database=database,
    )


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    settings = Settings()
    configure_logging(settings)
    uvicorn.run(
        build_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
    )


if __name__ == "__main__":
    main()
