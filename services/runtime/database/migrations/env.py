"""Run by Alembic. The connection, its transaction and its lock come from `services.runtime.database.migrate`."""

from alembic import context
from sqlalchemy import Connection

from services.runtime.database.tables import Base


def run_migrations() -> None:
    """Applies or compares migrations on the connection that the caller put into the configuration."""
    connection = context.config.attributes["connection"]
    if not isinstance(connection, Connection):
        raise TypeError("start migrations with Database.migrate(), which brings the connection")
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        # SQLite changes few things of a table in place; batch mode copies it.
        render_as_batch=connection.dialect.name == "sqlite",
        compare_server_default=True,
    )
    with context.begin_transaction():
        context.run_migrations()


run_migrations()
