"""API keys, on every database: found by id, checked by hash, and gone when revoked."""

import re

import pytest
from sqlalchemy import text

from services.contracts.errors import CallerError, NotFound, Unauthenticated
from services.runtime.auth import KeyVerifier, Scope, create_key, has_keys, list_keys, revoke_key
from services.runtime.database import Database


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_a_new_key_is_valid_and_has_its_scopes(database: Database) -> None:
    assert not await has_keys(database)
    created = await create_key(database, "ci", [Scope.TRAIN, Scope.READ, Scope.READ])
    assert await has_keys(database)
    assert re.fullmatch(r"rk_[0-9a-f]{16}_[0-9a-f]{64}", created.plaintext)
    principal = await KeyVerifier(database).verify(created.plaintext)
    assert principal.id == created.key.id
    assert principal.may(Scope.READ)
    assert principal.may(Scope.TRAIN)
    assert not principal.may(Scope.PREDICT)
    assert not principal.may(Scope.ADMIN)


async def test_the_secret_is_stored_and_shown_nowhere(database: Database) -> None:
    created = await create_key(database, "ci", [Scope.READ])
    secret = created.plaintext.rpartition("_")[2]
    async with database.session() as session:
        rows = (await session.execute(text("SELECT * FROM api_keys"))).fetchall()
    assert secret not in str(rows)
    assert secret not in repr(created)
    assert secret not in str(await list_keys(database))


async def test_a_revoked_key_is_refused_once_it_is_forgotten(database: Database) -> None:
    clock = Clock()
    verifier = KeyVerifier(database, cache_s=5, clock=clock)
    created = await create_key(database, "ci", [Scope.READ])
    await verifier.verify(created.plaintext)
    revoked = await revoke_key(database, created.key.id)
    assert revoked.revoked_at is not None
    clock.now_s = 5.0
    with pytest.raises(Unauthenticated):
        await verifier.verify(created.plaintext)
    assert not await has_keys(database)


async def test_a_key_is_refused_by_a_process_that_never_saw_it_valid(database: Database) -> None:
    created = await create_key(database, "ci", [Scope.READ])
    await revoke_key(database, created.key.id)
    with pytest.raises(Unauthenticated):
        await KeyVerifier(database).verify(created.plaintext)


async def test_a_remembered_key_still_needs_its_secret(database: Database) -> None:
    verifier = KeyVerifier(database)
    created = await create_key(database, "ci", [Scope.READ])
    await verifier.verify(created.plaintext)
    with pytest.raises(Unauthenticated):
        await verifier.verify(created.plaintext[:-64] + "0" * 64)


async def test_a_new_key_is_valid_at_once_where_it_was_asked_for_before(database: Database) -> None:
    verifier = KeyVerifier(database)
    created = await create_key(database, "one", [Scope.READ])
    with pytest.raises(Unauthenticated):
        await verifier.verify(created.plaintext.replace(created.key.id, "f" * 16))
    other = await create_key(database, "two", [Scope.READ])
    assert (await verifier.verify(other.plaintext)).id == other.key.id


async def test_revoking_twice_keeps_the_first_time(database: Database) -> None:
    created = await create_key(database, "ci", [Scope.READ])
    first = await revoke_key(database, created.key.id)
    assert await revoke_key(database, created.key.id) == first
    assert await list_keys(database) == [first]


async def test_what_cannot_be_a_key_is_refused(database: Database) -> None:
    with pytest.raises(NotFound, match="no-such-key"):
        await revoke_key(database, "no-such-key")
    with pytest.raises(CallerError, match="scopes"):
        await create_key(database, "ci", [])
    with pytest.raises(CallerError, match="1 to 128"):
        await create_key(database, "", [Scope.READ])
