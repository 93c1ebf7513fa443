"""Leases, on every database: one holder at a time, and a fencing token that only grows."""

import asyncio

import pytest

from services.contracts.errors import Fenced
from services.runtime.database import Database, LeaseStore, guard, new_holder
from services.runtime.database.tables import LeaseRow

CONTENDERS = 8


@pytest.fixture
def leases(database: Database) -> LeaseStore:
    return LeaseStore(database)


async def end(database: Database, name: str) -> None:
    """What the clock does to a lease whose holder is gone."""
    async with database.transaction() as session:
        row = await session.get(LeaseRow, name)
        assert row is not None
        row.expires_at = 0.0


async def test_one_of_many_contenders_gets_a_free_lease(leases: LeaseStore) -> None:
    taken = await asyncio.gather(*(leases.acquire("leader", f"gateway-{i}", 30) for i in range(CONTENDERS)))
    winners = [lease for lease in taken if lease is not None]
    assert len(winners) == 1
    assert winners[0].epoch == 1
    assert await leases.acquire("leader", "latecomer", 30) is None


async def test_one_of_many_contenders_gets_a_lease_that_ended_and_the_epoch_grows(
    database: Database, leases: LeaseStore
) -> None:
    first = await leases.acquire("leader", "dead", 30)
    assert first is not None
    epochs = [first.epoch]
    for _ in range(5):
        await end(database, "leader")
        taken = await asyncio.gather(*(leases.acquire("leader", new_holder(), 30) for _ in range(CONTENDERS)))
        winners = [lease for lease in taken if lease is not None]
        assert len(winners) == 1
        epochs.append(winners[0].epoch)
    assert epochs == [1, 2, 3, 4, 5, 6]


async def test_a_lease_ends_by_itself(leases: LeaseStore) -> None:
    first = await leases.acquire("leader", "dead", 0.0)
    second = await leases.acquire("leader", "next", 30)
    assert first is not None
    assert second is not None
    assert second.epoch == first.epoch + 1


async def test_the_holder_may_ask_again_without_a_new_epoch(leases: LeaseStore) -> None:
    first = await leases.acquire("leader", "gateway", 30)
    assert first is not None
    assert await leases.acquire("leader", "gateway", 30) == first


async def test_renewing_prolongs_a_lease_that_nobody_took(database: Database, leases: LeaseStore) -> None:
    lease = await leases.acquire("leader", "slow", 30)
    assert lease is not None
    await end(database, "leader")
    assert await leases.renew(lease, 30)
    assert await leases.acquire("leader", "other", 30) is None


async def test_renewing_fails_once_another_took_it(database: Database, leases: LeaseStore) -> None:
    lease = await leases.acquire("leader", "slow", 30)
    assert lease is not None
    await end(database, "leader")
    assert await leases.acquire("leader", "other", 30) is not None
    assert not await leases.renew(lease, 30)
    assert await leases.acquire("leader", "slow", 30) is None


async def test_a_released_lease_is_free_at_once_and_keeps_its_epoch(leases: LeaseStore) -> None:
    lease = await leases.acquire("leader", "first", 30)
    assert lease is not None
    await leases.release(lease)
    assert not await leases.renew(lease, 30)
    second = await leases.acquire("leader", "first", 30)
    assert second is not None
    assert second.epoch == lease.epoch + 1


async def test_releasing_does_not_take_it_from_another(database: Database, leases: LeaseStore) -> None:
    lease = await leases.acquire("leader", "slow", 30)
    assert lease is not None
    await end(database, "leader")
    assert await leases.acquire("leader", "other", 30) is not None
    await leases.release(lease)
    assert await leases.acquire("leader", "third", 30) is None


async def test_whoever_cannot_know_whether_it_has_the_lease_gives_it_back(leases: LeaseStore) -> None:
    lease = await leases.acquire("leader", "stopped", 30)
    assert lease is not None
    await leases.abandon("leader", "stopped")
    assert not await leases.renew(lease, 30)
    other = await leases.acquire("leader", "other", 30)
    assert other is not None
    assert other.epoch == lease.epoch + 1
    await leases.abandon("leader", "stopped")
    assert await leases.renew(other, 30)


async def test_leases_of_different_names_do_not_touch(leases: LeaseStore) -> None:
    assert await leases.acquire("one", "a", 30) is not None
    assert await leases.acquire("two", "b", 30) is not None


async def test_a_guarded_transaction_of_a_former_holder_changes_nothing(database: Database, leases: LeaseStore) -> None:
    lease = await leases.acquire("leader", "slow", 30)
    assert lease is not None
    await end(database, "leader")
    assert await leases.acquire("leader", "other", 30) is not None

    async def write_as_zombie() -> None:
        async with database.transaction() as session:
            session.add(LeaseRow(name="written by a zombie", holder="", epoch=1, expires_at=0.0))
            await guard(session, lease)

    with pytest.raises(Fenced):
        await write_as_zombie()
    async with database.session() as session:
        assert await session.get(LeaseRow, "written by a zombie") is None


async def test_nobody_takes_a_lease_inside_its_holders_guarded_transaction(
    database: Database, leases: LeaseStore
) -> None:
    lease = await leases.acquire("leader", "slow", 0.0)
    assert lease is not None
    order: list[str] = []

    async def take_over() -> None:
        assert await leases.acquire("leader", "other", 30) is not None
        order.append("taken over")

    async with database.transaction() as session:
        await guard(session, lease)
        contender = asyncio.create_task(take_over())
        for _ in range(20):
            await asyncio.sleep(0.01)
        order.append("committing")
    await contender
    assert order == ["committing", "taken over"]
