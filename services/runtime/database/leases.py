"""Leases: what only one process may do at a time, e.g. drive jobs on.

A lease alone does not stop a holder that was asleep when it ended. So every change of holder raises the lease's epoch,
and a transaction that must not happen twice calls `guard` first: it fails for any epoch but the newest.

All times are the database's clock, so the machines' clocks need not agree.
"""

import os
import secrets
import socket
from dataclasses import dataclass

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.errors import Fenced
from services.runtime.database.engine import Database

_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    # Not now(), which stands still in a transaction: a statement that waited for a row lock must see the time go on.
    "postgresql": "CAST(extract(epoch FROM clock_timestamp()) AS double precision)",
}


@dataclass(frozen=True, slots=True)
class Lease:
    """Held by `holder` until it ends or is released."""

    name: str
    holder: str
    epoch: int
    """The fencing token: greater than that of every other holder before."""


def new_holder() -> str:
    """A name for this process that no other has had: machine, process id and a random part."""
    return f"{socket.gethostname()[:64]}-{os.getpid()}-{secrets.token_hex(4)}"


class LeaseStore:
    """Leases in the database. Each method is one statement, so of concurrent callers one wins."""

    def __init__(self, database: Database) -> None:
        now = _NOW[database.dialect]
        self._database = database
        # SQLite and PostgreSQL agree on this syntax, and on which row the WHERE looks at: the one that is there.
        self._acquire = text(
            f"""
            INSERT INTO leases (name, holder, epoch, expires_at) VALUES (:name, :holder, 1, {now} + :ttl_s)
            ON CONFLICT (name) DO UPDATE SET
                epoch = CASE WHEN leases.holder = excluded.holder THEN leases.epoch ELSE leases.epoch + 1 END,
                holder = excluded.holder,
                expires_at = {now} + :ttl_s
            WHERE leases.holder = excluded.holder OR leases.expires_at <= {now}
            RETURNING epoch
            """  # noqa: S608 (the only thing put in is one of our own constants)
        )
        self._renew = text(
            f"UPDATE leases SET expires_at = {now} + :ttl_s "  # noqa: S608 (as above)
            "WHERE name = :name AND holder = :holder AND epoch = :epoch RETURNING epoch"
        )

    async def acquire(self, name: str, holder: str, ttl_s: float) -> Lease | None:
        """Takes the lease for `ttl_s` seconds, or prolongs it where `holder` has it already.

        Returns None while another holds it. Safe to repeat when the answer was lost.
        """
        async with self._database.transaction() as session:
            parameters = {"name": name, "holder": holder, "ttl_s": float(ttl_s)}
            epoch = (await session.execute(self._acquire, parameters)).scalar_one_or_none()
        return None if epoch is None else Lease(name, holder, epoch)

    async def renew(self, lease: Lease, ttl_s: float) -> bool:
        """Prolongs a lease to `ttl_s` seconds from now, even one that ended if nobody took it since.

        False: another has it; stop what it was for.
        """
        async with self._database.transaction() as session:
            parameters = {"name": lease.name, "holder": lease.holder, "epoch": lease.epoch, "ttl_s": float(ttl_s)}
            return (await session.execute(self._renew, parameters)).scalar_one_or_none() is not None

    async def release(self, lease: Lease) -> None:
        """Gives the lease back for the next to take at once. Does nothing where another has it."""
        await self._give_back(
            "name = :name AND holder = :holder AND epoch = :epoch", lease.name, lease.holder, lease.epoch
        )

    async def abandon(self, name: str, holder: str) -> None:
        """Gives back whatever `holder` has of it: for one that was stopped while it acquired it, and cannot know."""
        await self._give_back("name = :name AND holder = :holder", name, holder, None)

    async def _give_back(self, where: str, name: str, holder: str, epoch: int | None) -> None:
        # The row stays, and its epoch with it. An empty holder is nobody, so the next one raises the epoch.
        statement = text(f"UPDATE leases SET holder = '', expires_at = 0 WHERE {where}")  # noqa: S608 (constants)
        parameters = {"name": name, "holder": holder} | ({} if epoch is None else {"epoch": epoch})
        async with self._database.transaction() as session:
            await session.execute(statement, parameters)


async def guard(session: AsyncSession, lease: Lease) -> None:
    """Makes a transaction fail unless the lease is still this holder's, up to its commit.

    Call it first in a `Database.transaction()`. Until the transaction ends nobody else can take the lease: on SQLite
    it has the write lock, on PostgreSQL this locks the lease's row.

    Raises:
        Fenced: another has, or had, the lease since.
    """
    lock = " FOR SHARE" if session.get_bind().dialect.name == "postgresql" else ""
    query = text(f"SELECT epoch FROM leases WHERE name = :name AND holder = :holder{lock}")  # noqa: S608 (constants)
    epoch = (await session.execute(query, {"name": lease.name, "holder": lease.holder})).scalar_one_or_none()
    if epoch != lease.epoch:
        raise Fenced(f"{lease.holder} no longer holds the lease {lease.name!r} (epoch {lease.epoch})")
