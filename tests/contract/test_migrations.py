"""Migrations, on every database: they give exactly the schema of the tables, and starting together is safe."""

import asyncio
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, insert, inspect, text

from services.contracts.base import utc_now
from services.runtime.database import Database
from services.runtime.database.connections import parse_url
from services.runtime.database.migrate import alembic_config
from services.runtime.database.tables import Base, ModelAliasRow

STARTERS = 6


def differences(connection: Connection) -> list[object]:
    context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
    return list(compare_metadata(context, Base.metadata))


async def test_the_migrated_schema_is_that_of_the_tables(database: Database) -> None:
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_difference_would_be_seen(database: Database) -> None:
    async with database.engine.begin() as connection:
        await connection.execute(text("DROP INDEX ix_jobs_state_created_at"))
        await connection.execute(text("ALTER TABLE jobs DROP COLUMN reason"))
        found = str(await connection.run_sync(differences))
    assert "ix_jobs_state_created_at" in found
    assert "reason" in found


async def test_every_name_of_the_schema_is_that_of_the_tables(database: Database) -> None:
    """Later migrations drop constraints by name, which `compare_metadata` does not compare for keys."""

    def names(connection: Connection) -> set[str | None]:
        inspector = inspect(connection)
        return {
            name
            for table in Base.metadata.tables
            for name in (
                inspector.get_pk_constraint(table)["name"],
                *(key["name"] for key in inspector.get_foreign_keys(table)),
                *(index["name"] for index in inspector.get_indexes(table)),
            )
        }

    expected = {
        str(item.name)
        for table in Base.metadata.tables.values()
        for item in (table.primary_key, *table.foreign_key_constraints, *table.indexes)
    }
    async with database.engine.connect() as connection:
        assert await connection.run_sync(names) == expected


async def test_migrating_again_changes_nothing(database: Database) -> None:
    await database.migrate()
    async with database.engine.connect() as connection:
        assert await connection.run_sync(differences) == []


async def test_processes_that_start_together_all_find_a_migrated_database(database_url: str) -> None:
    code = (
        "import asyncio, sys; from services.runtime.database import Database; from sqlalchemy import text\n"
        "async def main():\n"
        "    database = Database(sys.argv[1]); print('ready', flush=True); sys.stdin.readline()\n"
        "    await database.migrate()\n"
        "    async with database.session() as session: print(await session.scalar(text('SELECT count(*) FROM jobs')))\n"
        "    await database.close()\n"
        "asyncio.run(main())\n"
    )
    pipe = asyncio.subprocess.PIPE
    starters = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            database_url,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            cwd=Path(__file__).parents[2],
        )
        for _ in range(STARTERS)
    ]
    for starter in starters:
        assert starter.stdout is not None
        assert await starter.stdout.readline() == b"ready\n"
    results = await asyncio.gather(*(starter.communicate(b"go\n") for starter in starters))
    assert [(starter.returncode, out) for starter, (out, _) in zip(starters, results, strict=True)] == [
        (0, b"0\n")
    ] * STARTERS, b"\n".join(err for _, err in results).decode()


async def test_a_database_of_a_newer_release_is_refused(database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(CommandError, match="9999"):
        await database.migrate()


async def test_aliases_of_the_releases_before_have_one_version(database_url: str) -> None:
    def upgrade(connection: Connection, revision: str) -> None:
        config = alembic_config()
        config.attributes["connection"] = connection
        command.upgrade(config, revision)

    if (file := parse_url(database_url).database) and database_url.startswith("sqlite"):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    database = Database(database_url)
    try:
        async with database.engine.begin() as connection:
            await connection.run_sync(upgrade, "0002")
            await connection.execute(
                insert(ModelAliasRow.__table__).values(
                    model_name="flowers", alias="production", version=7, updated_at=utc_now()
                )
            )
        await database.migrate()
        async with database.session() as session:
            row = await session.get(ModelAliasRow, ("flowers", "production"))
            assert row is not None
            assert (row.version, row.split_version, row.split_weight, row.shadow_version) == (7, None, None, None)
    finally:
        await database.close()
