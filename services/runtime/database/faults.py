"""Which database errors are worth another try: pure functions over what the drivers raise."""

import sqlite3

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

_SQLITE_TRANSIENT = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_PROTOCOL,
    }
)
_POSTGRES_TRANSIENT_CLASSES = ("08", "53", "57", "40", "55P03", "58", "25006")
"""SQLSTATE prefixes: connection, resources, operator intervention (shutdown, cancelled), serialization and deadlock,
lock timeout, system error, read-only (a standby after a failover)."""


def is_transient(error: BaseException) -> bool:
    """Whether the same statement may succeed later, unchanged.

    True for lost and refused connections, full pools, timeouts, locks and deadlocks; false for everything that the
    statement or the schema is at fault for.
    """
    if isinstance(error, (OSError, TimeoutError, PoolTimeout)):
        return True
    if isinstance(error, sqlite3.Error):
        return _is_transient_sqlite(error)
    if not isinstance(error, DBAPIError):
        return False
    if error.connection_invalidated:
        return True
    return _has_transient_cause(error.orig)


def _has_transient_cause(cause: BaseException | None) -> bool:
    # The drivers' own errors are chained below the ones that SQLAlchemy made of them.
    while cause is not None:
        if isinstance(cause, (OSError, TimeoutError)):
            return True
        if isinstance(cause, sqlite3.Error):
            return _is_transient_sqlite(cause)
        state = getattr(cause, "sqlstate", None)
        if isinstance(state, str):
            return state.startswith(_POSTGRES_TRANSIENT_CLASSES)
        cause = cause.__cause__
    return False


def _is_transient_sqlite(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)  # absent where the module raises by itself
    return isinstance(code, int) and (code & 0xFF) in _SQLITE_TRANSIENT
