"""The number that tells that versions or aliases have changed, on every database."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import delete, update
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts.base import utc_now
from services.inference.predict.queries import read_generation
from services.runtime.database import Database
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow

Change = Callable[[AsyncSession], Awaitable[object]]


async def generation_of(database: Database) -> int:
    async with database.session() as session:
        return await read_generation(session)


async def publish(session: AsyncSession, number: int = 1) -> None:
    session.add(
        ModelVersionRow(
            model_name="flowers", version=number, created_at=utc_now(), job_id="job_1", trunk_id="t", manifest={}
        )
    )
    await session.flush()


async def point(session: AsyncSession, alias: str = "production") -> None:
    session.add(ModelAliasRow(model_name="flowers", alias=alias, version=1, updated_at=utc_now()))
    await session.flush()


CHANGES: dict[str, Change] = {
    "a version is published": lambda session: publish(session, 2),
    "a version is deleted": lambda session: session.execute(update(ModelVersionRow).values(deleted_at=utc_now())),
    "an alias is set": lambda session: point(session, "other"),
    "an alias moves": lambda session: session.execute(update(ModelAliasRow).values(version=2)),
    "an alias is deleted": lambda session: session.execute(delete(ModelAliasRow)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_it_grows_with_a_change_when_that_is_seen(database: Database, change: Change) -> None:
    async with database.transaction() as session:
        await publish(session)
        await point(session)
    before = await generation_of(database)
    async with database.transaction() as session:
        await change(session)
        assert await generation_of(database) == before
    assert await generation_of(database) > before


async def test_what_is_rolled_back_has_changed_nothing(database: Database) -> None:
    before = await generation_of(database)
    async with database.session() as session:
        await publish(session)
        await session.rollback()
    assert await generation_of(database) == before


async def test_changes_side_by_side_all_count(database: Database) -> None:
    before = await generation_of(database)

    async def both(number: int) -> None:
        async with database.transaction() as session:
            await publish(session, number)
            await asyncio.sleep(0)
            await point(session, f"alias-{number}")

    async with asyncio.timeout(20):
        await asyncio.gather(*(both(number) for number in range(1, 9)))
    assert await generation_of(database) >= before + 8
