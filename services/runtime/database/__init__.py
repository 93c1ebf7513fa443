"""The database: intent and history. SQLite by default, PostgreSQL where several machines run gateways."""

from services.runtime.database.engine import Database

__all__ = ["Database"]
