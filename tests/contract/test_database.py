"""The database, on SQLite and PostgreSQL: what is committed stays, what fails leaves nothing, and errors say which."""

import asyncio
import contextlib
import random
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import IntegrityError, StatementError

from services.contracts.errors import DatabaseUnavailable
from services.runtime.database import Database
from services.runtime.database.sqlite_connection import SqliteConnection
from services.runtime.database.tables import DatasetRow, JobEventRow, JobRow
from tests.servers.postgres import PostgresServer

NOON = datetime(2026, 11, 1, 12, 0, 0, 123456, tzinfo=UTC)


def dataset(dataset_id: str = "ds_1", **values: object) -> DatasetRow:
    return DatasetRow(
        **{"id": dataset_id, "name": "flowers", "source": {"type": "upload"}, "state": "ready", "created_at": NOON}
        | values
    )


def job(job_id: str = "job_1", **values: object) -> JobRow:
    return JobRow(
        **{
            "id": job_id,
            "kind": "train",
            "model_name": "flowers",
            "record": {"job_id": job_id},
            "state": "queued",
            "created_at": NOON,
            "updated_at": NOON,
        }
        | values
    )


async def dataset_ids(database: Database) -> list[str]:
    async with database.session() as session:
        return list(await session.scalars(select(DatasetRow.id).order_by(DatasetRow.id)))


async def test_a_transaction_that_ends_is_seen_by_another_connection(database: Database, database_url: str) -> None:
    async with database.transaction() as session:
        session.add(dataset())
    other = Database(database_url)
    assert await dataset_ids(other) == ["ds_1"]
    await other.close()


async def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    async def fail_after_writing() -> None:
        async with database.transaction() as session:
            session.add(dataset())
            await session.flush()
            raise LookupError("caller's own")

    with pytest.raises(LookupError, match="caller's own"):
        await fail_after_writing()
    assert await dataset_ids(database) == []


async def test_a_session_keeps_only_what_its_caller_commits(database: Database) -> None:
    async with database.session() as session:
        session.add(dataset("ds_kept"))
        await session.commit()
        session.add(dataset("ds_dropped"))
        await session.flush()
    assert await dataset_ids(database) == ["ds_kept"]


async def test_timestamps_come_back_in_utc_to_the_microsecond(database: Database) -> None:
    in_india = NOON.astimezone(timezone(timedelta(hours=5, minutes=30)))
    async with database.transaction() as session:
        session.add(dataset(created_at=in_india))
    async with database.session() as session:
        row = await session.get(DatasetRow, "ds_1")
    assert row is not None
    assert row.created_at == NOON
    assert row.created_at.utcoffset() == timedelta(0)


async def test_a_timestamp_without_a_zone_is_refused(database: Database) -> None:
    async def store_naive() -> None:
        async with database.transaction() as session:
            session.add(dataset(created_at=datetime(2026, 11, 1)))  # noqa: DTZ001

    with pytest.raises(StatementError, match="no time zone"):
        await store_naive()


async def test_json_comes_back_as_it_went_in_and_none_is_null(database: Database) -> None:
    layout = {"classes": ["ünïcode", "b"], "image_count": None, "share": 0.1, "nested": {"deep": [1, True]}}
    async with database.transaction() as session:
        session.add_all([dataset("ds_1", layout=layout), dataset("ds_2", layout=None)])
    async with database.session() as session:
        assert await session.scalar(select(DatasetRow.layout).where(DatasetRow.id == "ds_1")) == layout
        assert list(await session.scalars(select(DatasetRow.id).where(DatasetRow.layout.is_(None)))) == ["ds_2"]


async def test_a_new_job_starts_from_nothing(database: Database) -> None:
    async with database.transaction() as session:
        session.add(job())
    async with database.session() as session:
        row = await session.get(JobRow, "job_1")
    assert row is not None
    assert (row.attempt, row.progress_seq, row.event_seq, row.cancel_requested) == (0, -1, 0, False)
    assert (row.stages, row.warnings, row.result, row.failure, row.finished_at) == ([], [], None, None, None)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param([dataset(), dataset()], id="same id twice"),
        pytest.param([job(dataset_id="ds_missing")], id="job of no dataset"),
        pytest.param(
            [
                JobEventRow(
                    job_id="job_missing", seq=1, type="state", at=NOON, attempt=0, state="queued", message="", data={}
                )
            ],
            id="event of no job",
        ),
    ],
)
async def test_rows_that_contradict_each_other_are_refused(database: Database, broken: list[object]) -> None:
    async def store() -> None:
        async with database.transaction() as session:
            for row in broken:
                table = type(row).__table__  # type: ignore[attr-defined]
                columns = {c.key: getattr(row, c.key) for c in table.columns if getattr(row, c.key) is not None}
                await session.execute(insert(type(row)).values(columns))

    with pytest.raises(IntegrityError):
        await store()


async def test_concurrent_transactions_that_read_then_write_lose_no_update(database: Database) -> None:
    async with database.transaction() as session:
        session.add(job())

    async def count_up() -> None:
        async with database.transaction() as session:
            row = await session.get(JobRow, "job_1", with_for_update=True)
            assert row is not None
            row.event_seq += 1

    await asyncio.gather(*(count_up() for _ in range(24)))
    async with database.session() as session:
        assert await session.scalar(select(JobRow.event_seq)) == 24


async def test_reading_goes_on_while_another_writes(database: Database) -> None:
    async with database.transaction() as session:
        session.add(dataset("ds_1"))
    async with database.transaction() as session:
        session.add(dataset("ds_2"))
        await session.flush()
        assert await dataset_ids(database) == ["ds_1"]
    assert await dataset_ids(database) == ["ds_1", "ds_2"]


async def test_a_statement_that_is_wrong_is_not_called_unavailable(database: Database) -> None:
    async def ask() -> None:
        async with database.session() as session:
            await session.execute(text("SELECT * FROM no_such_table"))

    with pytest.raises(Exception, match="no_such_table") as caught:
        await ask()
    assert not isinstance(caught.value, DatabaseUnavailable)


async def test_the_callers_own_os_error_is_not_called_unavailable(database: Database) -> None:
    async def read_a_file() -> None:
        async with database.transaction():
            raise FileNotFoundError("caller's own")

    with pytest.raises(FileNotFoundError):
        await read_a_file()


async def test_waiting_too_long_for_anothers_transaction_is_unavailable(database: Database, database_url: str) -> None:
    async with database.transaction() as session:
        session.add(job())
    impatient = Database(database_url, statement_timeout_s=0.2)

    async def change() -> None:
        async with impatient.transaction() as session:
            await session.execute(update(JobRow).values(attempt=1))

    async with database.transaction() as session:
        await session.execute(update(JobRow).values(attempt=2))
        with pytest.raises(DatabaseUnavailable):
            await change()
    await change()
    await impatient.close()
    async with database.session() as session:
        assert await session.scalar(select(JobRow.attempt)) == 1


async def test_a_transaction_that_freezes_gives_up_its_locks(empty_postgres_url: str) -> None:
    """On SQLite the lock is the process's: it goes when that dies, and not before."""
    frozen = Database(empty_postgres_url, statement_timeout_s=1)
    await frozen.migrate()
    async with frozen.transaction() as session:
        session.add(job())
    other = Database(empty_postgres_url)

    async def freeze() -> None:
        async with frozen.transaction() as session:
            await session.execute(update(JobRow).values(attempt=1))
            async with other.transaction() as waiting:
                await waiting.execute(update(JobRow).values(attempt=2))

    with pytest.raises(DatabaseUnavailable):
        await freeze()
    async with other.session() as session:
        assert await session.scalar(select(JobRow.attempt)) == 2
    await frozen.close()
    await other.close()


async def test_who_is_cancelled_anywhere_in_a_transaction_gives_up_its_locks(database_url: str) -> None:
    database = Database(database_url, statement_timeout_s=1)
    await database.migrate()

    async def write() -> None:
        async with database.transaction() as session:
            await session.execute(update(DatasetRow).values(name="tulips"))
            await session.execute(select(DatasetRow.id))

    async with database.transaction() as session:
        session.add(dataset())
    moments = random.Random(1)
    for _ in range(100):
        writing = asyncio.create_task(write())
        await asyncio.sleep(moments.uniform(0, 0.006))
        writing.cancel()
        await asyncio.wait([writing])
        await write()  # or it is unavailable
    await database.close()


def test_a_sqlite_connection_that_is_closed_in_a_transaction_gives_up_its_lock(tmp_path: Path) -> None:
    """Also while the cursor of an unfinished statement is still about, as in the traceback of who was cancelled."""
    path = tmp_path / "database"
    connection = sqlite3.connect(path, factory=SqliteConnection, isolation_level=None)
    connection.execute("CREATE TABLE numbers (n INTEGER)")
    connection.execute("BEGIN IMMEDIATE")
    connection.execute("INSERT INTO numbers VALUES (1)")
    cursor = connection.execute("SELECT n FROM numbers UNION ALL SELECT 2")
    cursor.fetchone()
    connection.close()
    connection.close()
    with contextlib.closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert other.execute("SELECT count(*) FROM numbers").fetchone() == (0,)
    del cursor


async def test_accepted_jobs_survive_the_death_of_the_process(database: Database, database_url: str) -> None:
    code = f"""
import asyncio, os, sys
from tests.contract.test_database import dataset
from services.runtime.database import Database
async def main():
    database = Database({database_url!r})
    async with database.transaction() as session:
        session.add(dataset("ds_committed"))
    async with database.transaction() as session:
        session.add(dataset("ds_unfinished"))
        await session.flush()
        os.kill(os.getpid(), 9)
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], timeout=60, cwd=Path(__file__).parents[2], capture_output=True
    )
    assert done.returncode == -9, done.stderr.decode()
    assert await dataset_ids(database) == ["ds_committed"]


# --- SQLite alone ---


async def test_sqlite_syncs_every_commit_to_its_write_ahead_log(empty_sqlite_url: str) -> None:
    database = Database(empty_sqlite_url)
    await database.migrate()
    async with database.session() as session:
        assert await session.scalar(text("PRAGMA journal_mode")) == "wal"
        assert await session.scalar(text("PRAGMA synchronous")) == 2  # FULL
        assert await session.scalar(text("PRAGMA foreign_keys")) == 1
    await database.close()


async def test_a_sqlite_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    database = Database(f"sqlite:///{tmp_path}/file/rekindle.db")
    with pytest.raises(DatabaseUnavailable):
        await database.ping()
    with pytest.raises(DatabaseUnavailable):
        await database.migrate()
    await database.close()


# --- PostgreSQL alone ---


async def test_a_postgres_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    for url in (f"postgresql://postgres@/x?host={tmp_path}", "postgresql://postgres@127.0.0.1:1/x"):
        database = Database(url)
        with pytest.raises(DatabaseUnavailable):
            await database.ping()
        with pytest.raises(DatabaseUnavailable):
            await database.migrate()
        await database.close()


async def test_a_dropped_connection_is_unavailable_once_and_then_replaced(
    postgres_server: PostgresServer, empty_postgres_url: str
) -> None:
    database = Database(empty_postgres_url)
    await database.migrate()

    async def write_while_being_cut_off() -> None:
        async with database.transaction() as session:
            session.add(dataset())
            pid = await session.scalar(text("SELECT pg_backend_pid()"))
            await asyncio.to_thread(postgres_server.run, "psql", "-c", f"SELECT pg_terminate_backend({pid}, 5000)")
            await session.execute(update(DatasetRow).values(name="changed"))

    with pytest.raises(DatabaseUnavailable):
        await write_while_being_cut_off()
    assert await dataset_ids(database) == []
    await database.close()


async def test_a_postgres_server_that_falls_silent_is_unavailable(
    postgres_server: PostgresServer, empty_postgres_url: str, tmp_path: Path
) -> None:
    """A proxy stands for a network that stops carrying anything, without closing the connection."""
    carrying = asyncio.Event()
    carrying.set()
    pumps: list[asyncio.Task[None]] = []

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await carrying.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def on_client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = await asyncio.open_unix_connection(postgres_server.socket_dir / ".s.PGSQL.5432")
        pumps.extend([asyncio.create_task(pump(reader, upstream[1])), asyncio.create_task(pump(upstream[0], writer))])

    proxy = await asyncio.start_server(on_client, "127.0.0.1", 0)
    port = proxy.sockets[0].getsockname()[1]
    name = empty_postgres_url.partition("@/")[2].partition("?")[0]
    database = Database(f"postgresql://postgres@127.0.0.1:{port}/{name}", statement_timeout_s=0.1)

    async def ask_into_silence() -> None:
        async with database.session() as session:
            carrying.clear()
            await session.execute(text("SELECT 1"))

    await database.ping()
    with pytest.raises(DatabaseUnavailable):
        await ask_into_silence()
    carrying.set()
    await database.ping()
    await database.close()
    for task in pumps:
        task.cancel()
    await asyncio.gather(*pumps, return_exceptions=True)
    proxy.close()
