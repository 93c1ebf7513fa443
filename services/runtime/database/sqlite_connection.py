"""Connections to SQLite that give back the database's one write lock when they are closed, whatever was going on."""

import sqlite3


class SqliteConnection(sqlite3.Connection):
    """Rolls back when it is closed.

    SQLite does so only once all statements are finalised, which here is when Python gets around to collecting their
    cursors: where somebody was cancelled in the middle of a transaction, that may be minutes later.
    """

    def close(self) -> None:
        """What was not committed is gone. Closing again changes nothing."""
        try:
            if self.in_transaction:
                self.rollback()
        except sqlite3.ProgrammingError:  # it is closed
            return
        super().close()
