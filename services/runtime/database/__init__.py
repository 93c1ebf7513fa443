"""The database: intent and history. SQLite by default, PostgreSQL where several machines run gateways."""

from services.runtime.database.engine import Database
from services.runtime.database.leases import Lease, LeaseStore, guard, new_holder

__all__ = ["Database", "Lease", "LeaseStore", "guard", "new_holder"]
