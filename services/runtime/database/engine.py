"""Sessions and transactions, the same on SQLite and PostgreSQL."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from services.contracts.errors import DatabaseUnavailable
from services.runtime.database.connections import BEGIN_OPTION, STATEMENT_TIMEOUT_S, connect, parse_url
from services.runtime.database.faults import is_transient
from services.runtime.database.migrate import migrate


class Database:
    """A pool of connections to one database. Make one per process and `close` it.

    Every method raises `DatabaseUnavailable` when the database cannot be reached, is too busy, or drops the
    connection; then the transaction was rolled back, unless it was the commit whose answer got lost.
    """

    def __init__(self, url: str, *, statement_timeout_s: float = STATEMENT_TIMEOUT_S) -> None:
        """Connects to nothing yet. Raises `ValueError` for a URL that cannot be used."""
        self._url = parse_url(url)
        engine = connect(self._url, statement_timeout_s=statement_timeout_s)
        self._engine = engine
        self._sessions = async_sessionmaker(engine, expire_on_commit=False)
        # A SQLite transaction that reads before it writes fails at once if another wrote in between; taking the
        # write lock at the start makes it wait for its turn instead. PostgreSQL ignores the option.
        writing = engine.execution_options(**{BEGIN_OPTION: "BEGIN IMMEDIATE"})
        self._writing_sessions = async_sessionmaker(writing, expire_on_commit=False)

    @property
    def dialect(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._url.get_backend_name()

    @property
    def engine(self) -> AsyncEngine:
        """For code that needs connections and not sessions; it maps no errors."""
        return self._engine

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[AsyncSession, None]:
        """A session for reading. What was not committed by the caller is rolled back."""
        async with self._opened(self._sessions) as session:
            yield session

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncSession, None]:
        """A session that commits when the block ends and rolls back when it raises.

        On SQLite it holds the database's one write lock from the start, so keep it short and do nothing in it that
        waits for anything else. On PostgreSQL it is READ COMMITTED: lock rows that you read to change them
        (`with_for_update()`, which SQLite ignores).
        """
        async with self._opened(self._writing_sessions) as session:
            yield session
            await session.commit()

    @asynccontextmanager
    async def _opened(self, sessions: async_sessionmaker[AsyncSession]) -> AsyncGenerator[AsyncSession, None]:
        async with sessions() as session:
            try:
                # Connect now: an OSError here is the database's, one further down may be the caller's own.
                await session.connection()
            except (OSError, SQLAlchemyError) as error:
                raise self._mapped(error) from error
            try:
                yield session
            except (DBAPIError, PoolTimeout) as error:
                if is_transient(error):
                    raise self._mapped(error) from error
                raise

    def _mapped(self, error: Exception) -> Exception:
        if not is_transient(error):
            return error
        # The driver's message may name hosts and users; it is chained for the log and kept out of the answer.
        return DatabaseUnavailable(f"the {self.dialect} database does not answer or is too busy: try again")

    async def ping(self) -> None:
        """Returns when the database answers a query."""
        async with self.session() as session:
            await session.execute(text("SELECT 1"))

    async def migrate(self) -> None:
        """Brings the schema up to date. Processes that start together wait for the one that does it."""
        await migrate(self._url)

    async def close(self) -> None:
        """Closes all connections. The database can still be used afterwards; it reconnects."""
        await self._engine.dispose()
