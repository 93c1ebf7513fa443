"""Connections to SQLite and PostgreSQL, set up so that both behave the same."""

from typing import Protocol

from sqlalchemy import URL, Connection, ExceptionContext, event, make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from services.contracts.errors import DatabaseUnavailable
from services.runtime.database.sqlite_connection import SqliteConnection

CONNECT_TIMEOUT_S = 10
STATEMENT_TIMEOUT_S = 15.0
"""Longest time for one statement on PostgreSQL, and between two of a transaction; on SQLite, longest wait for another's
write transaction."""
POOL_TIMEOUT_S = 10
"""Longest wait for a free connection."""
_ANSWER_GRACE_S = 5
"""PostgreSQL ends a statement by itself; a server that has not answered this much later is gone."""

BEGIN_OPTION = "rekindle_begin"
"""Execution option: the statement that begins a SQLite transaction."""


class _DbapiCursor(Protocol):
    def execute(self, operation: str, /) -> object: ...
    def close(self) -> None: ...


class _DbapiConnection(Protocol):
    isolation_level: str | None

    def cursor(self) -> _DbapiCursor: ...


def parse_url(url: str) -> URL:
    """The SQLAlchemy URL with the async driver that Rekindle uses.

    Raises `ValueError` for anything but SQLite in a file and PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ValueError(
            "the database URL cannot be read: use sqlite+aiosqlite:////folder/file.db or postgresql://…"
        ) from error
    match parsed.get_backend_name():
        case "sqlite":
            if parsed.database in (None, "", ":memory:"):
                raise ValueError("an in-memory SQLite database loses accepted jobs: give the URL a file")
            return parsed.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres":
            return parsed.set(drivername="postgresql+asyncpg")
        case other:
            raise ValueError(f"no support for {other!r} databases: use SQLite or PostgreSQL")


def connect(url: URL, *, foreign_keys: bool = True, statement_timeout_s: float = STATEMENT_TIMEOUT_S) -> AsyncEngine:
    """An engine whose transactions begin when asked to and whose commits are on disk when they return."""
    if url.get_backend_name() == "sqlite":
        arguments = {"timeout": statement_timeout_s, "factory": SqliteConnection}
        engine = create_async_engine(url, pool_timeout=POOL_TIMEOUT_S, connect_args=arguments)
        _prepare_sqlite(engine, foreign_keys=foreign_keys)
        return engine
    engine = create_async_engine(
        url,
        pool_size=5,
        max_overflow=10,
        pool_timeout=POOL_TIMEOUT_S,
        pool_pre_ping=True,
        pool_recycle=1800,
        connect_args={
            "timeout": CONNECT_TIMEOUT_S,
            "command_timeout": statement_timeout_s + _ANSWER_GRACE_S,
            "server_settings": {
                "application_name": "rekindle",
                "statement_timeout": str(round(statement_timeout_s * 1000)),
                # A gateway that froze in the middle of a transaction must not keep its locks from the next leader.
                "idle_in_transaction_session_timeout": str(round(statement_timeout_s * 1000)),
            },
        },
    )
    event.listen(engine.sync_engine, "handle_error", _on_silence)
    return engine


def _on_silence(context: ExceptionContext) -> BaseException | None:
    """What the driver raises when the network is gone would look like the caller's own timeout or OSError."""
    if isinstance(context.original_exception, OSError):
        return DatabaseUnavailable("the postgresql database stopped answering: try again")
    return None


def _prepare_sqlite(engine: AsyncEngine, *, foreign_keys: bool) -> None:
    def on_connect(connection: _DbapiConnection, _record: object) -> None:
        # The driver would begin transactions by itself, too late and only before writes; `on_begin` does it instead.
        connection.isolation_level = None
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA foreign_keys={'ON' if foreign_keys else 'OFF'}")
        # FULL syncs the write-ahead log at every commit; NORMAL may lose accepted jobs when the power goes.
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.close()

    def on_begin(connection: Connection) -> None:
        connection.exec_driver_sql(connection.get_execution_options().get(BEGIN_OPTION, "BEGIN"))

    event.listen(engine.sync_engine, "connect", on_connect)
    event.listen(engine.sync_engine, "begin", on_begin)
