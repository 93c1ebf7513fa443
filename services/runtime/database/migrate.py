"""Schema migrations: every process asks for them at start, one does them, the others wait."""

import asyncio
import fcntl
import sqlite3
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import TextIO

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.contracts.errors import DatabaseUnavailable, InternalError
from services.runtime.database.connections import BEGIN_OPTION, connect
from services.runtime.database.faults import is_transient

MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_TIMEOUT_S = 300
"""Longest time for all migrations together, waiting for another process that does them included."""
_LOCK_POLL_S = 0.05
_POSTGRES_LOCK = 7_364_726_912_001
"""Key of the advisory lock; any constant that nothing else in the database uses."""


def alembic_config() -> Config:
    """Alembic's configuration: no file, only where the migrations are."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    return config


async def migrate(url: URL) -> None:
    """Applies the migrations that are missing, in one transaction: all or none.

    Safe when several processes start together: on SQLite one holds a lock file, on PostgreSQL an advisory lock that
    ends with its connection.

    Raises:
        DatabaseUnavailable: the database cannot be reached, or another process has held the lock for too long.
        alembic.util.CommandError: the database was made by a newer release.
    """
    engine = connect(url, foreign_keys=False, statement_timeout_s=MIGRATION_TIMEOUT_S)
    try:
        if url.get_backend_name() == "sqlite":
            async with _sqlite_lock(Path(str(url.database))):
                await _migrate_sqlite(engine)
        else:
            await _migrate_postgresql(engine)
    except (OSError, SQLAlchemyError, sqlite3.Error) as error:
        if is_transient(error):
            raise DatabaseUnavailable(f"the {url.get_backend_name()} database does not answer: try again") from error
        raise
    finally:
        await engine.dispose()


async def _migrate_sqlite(engine: AsyncEngine) -> None:
    await asyncio.to_thread(_use_write_ahead_log, str(engine.url.database))
    async with engine.execution_options(**{BEGIN_OPTION: "BEGIN EXCLUSIVE"}).begin() as connection:
        await connection.run_sync(_upgrade)
        # Rebuilding a table needs foreign keys off, so what they would have caught is looked for at the end.
        broken = (await connection.execute(text("PRAGMA foreign_key_check"))).fetchall()
        if broken:
            raise InternalError(f"a migration left rows without their parents: {broken[:5]}")


def _use_write_ahead_log(path: str) -> None:
    """Readers and the writer no longer block each other. The mode is kept in the file.

    Only under the lock: while another process opens the database the switch fails as "database is locked", whatever
    the busy timeout.
    """
    with closing(sqlite3.connect(path, timeout=MIGRATION_TIMEOUT_S)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")


async def _migrate_postgresql(engine: AsyncEngine) -> None:
    async with engine.begin() as connection:
        await _advisory_lock(connection)
        await connection.run_sync(_upgrade)


async def _advisory_lock(connection: AsyncConnection) -> None:
    await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK})


def _upgrade(connection: Connection) -> None:
    config = alembic_config()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@asynccontextmanager
async def _sqlite_lock(database: Path) -> AsyncGenerator[None, None]:
    """Holds a lock file beside the database. The system releases it when the process dies."""
    deadline = time.monotonic() + MIGRATION_TIMEOUT_S
    with await asyncio.to_thread(_open_lock_file, database) as file:
        while not _try_lock(file):
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(f"another process has been migrating {database} for {MIGRATION_TIMEOUT_S} s")
            await asyncio.sleep(_LOCK_POLL_S)
        yield


def _open_lock_file(database: Path) -> TextIO:
    database.parent.mkdir(parents=True, exist_ok=True)
    return database.with_name(f"{database.name}.migrate.lock").open("w")


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
