"""A repeated request makes nothing twice.

The key is bound to the new resource's id before anything is made, so whoever repeats the request, at the same time or
after a crash halfway, goes on with the same id; every step after that is one that may be repeated.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from pydantic import BaseModel
from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from services.contracts.base import utc_now
from services.contracts.errors import IdempotencyKeyReused, InternalError
from services.runtime.auth import Principal
from services.runtime.database import Database
from services.runtime.database.tables import IdempotencyKeyRow

_RACES = 5


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A request that makes something."""

    principal: Principal
    route: str
    key: str | None
    """The `Idempotency-Key`, or None where there was none; then every request is a new one."""
    body: BaseModel

    def body_sha256(self) -> str:
        """Equal for equal bodies, however they were spelt."""
        return hashlib.sha256(self.body.model_dump_json().encode()).hexdigest()


async def find_reserved(database: Database, request: IdempotentRequest) -> str | None:
    """The id that the same request got before, if there was one. Whether anything was made under it is open.

    Raises `IdempotencyKeyReused` when the key came with another body.
    """
    if request.key is None:
        return None
    async with database.session() as session:
        row = await session.get(IdempotencyKeyRow, (request.principal.id, request.route, request.key))
    return None if row is None else _checked(row, request)


async def reserve_id(database: Database, request: IdempotentRequest, new_id: Callable[[], str]) -> str:
    """The id of what the request makes: always the same for one principal, route and key.

    Raises `IdempotencyKeyReused` when the key came with another body.
    """
    if request.key is None:
        return new_id()
    for _ in range(_RACES):
        try:
            async with database.transaction() as session:
                row = await session.get(IdempotencyKeyRow, (request.principal.id, request.route, request.key))
                if row is None:
                    row = IdempotencyKeyRow(
                        principal=request.principal.id,
                        route=request.route,
                        key=request.key,
                        request_sha256=request.body_sha256(),
                        resource_id=new_id(),
                        created_at=utc_now(),
                    )
                    session.add(row)
                    await session.flush()
        except IntegrityError:
            continue  # somebody else was faster; now the row is there
        return _checked(row, request)
    raise InternalError(f"the Idempotency-Key {request.key!r} was taken {_RACES} times and never there")


def _checked(row: IdempotencyKeyRow, request: IdempotentRequest) -> str:
    if row.request_sha256 != request.body_sha256():
        raise IdempotencyKeyReused(
            f"the Idempotency-Key {request.key!r} was used before with another body: use a new key for a new request",
            {"resource_id": row.resource_id},
        )
    return row.resource_id


async def forget_before(database: Database, at: datetime) -> None:
    """Deletes the keys that were used before `at`."""
    async with database.transaction() as session:
        await session.execute(delete(IdempotencyKeyRow).where(IdempotencyKeyRow.created_at < at))
