"""What the commands share that work on the bucket and the database themselves, where the server runs."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Annotated

import typer

from services.runtime.database import Database
from services.runtime.settings import Settings

BucketUri = Annotated[
    str | None, typer.Option(help="s3://bucket/prefix or file:///folder. (REKINDLE_BUCKET)", metavar="URI")
]


def server_settings(bucket: str | None, database: str | None) -> Settings:
    """The server's settings; None leaves one to the environment."""
    given = {"bucket": bucket, "database_url": database}
    return Settings(**{name: value for name, value in given.items() if value is not None})  # pyright: ignore[reportArgumentType]


@asynccontextmanager
async def migrated_database(settings: Settings) -> AsyncGenerator[Database]:
    """The server's database with its tables as this release has them, closed at the end."""
    settings.home.mkdir(parents=True, exist_ok=True)
    database = Database(settings.database_url)
    try:
        await database.migrate()
        yield database
    finally:
        await database.close()
