"""`rekindle restore`: datasets, then jobs, then models, each thing in a transaction of its own.

It may be stopped and repeated at any time. API keys and Idempotency-Keys are not in the bucket and do not come back.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from services.contracts import names
from services.contracts.base import StoredContract
from services.contracts.errors import Conflict, RetryLater
from services.contracts.jobs import JobState
from services.runtime.database import Database
from services.runtime.database.leases import Lease, LeaseStore, guard, new_holder
from services.runtime.objects import ObjectStore
from services.training.reconciler.loop import LEASE_NAME
from services.training.restore import writing
from services.training.restore.history import rebuild
from services.training.restore.reading import BucketReader, FoundJob, FoundModel, Unreadable
from services.training.restore.writing import Written

LEASE_S = 30.0
READS_AT_A_TIME = 16

Item = TypeVar("Item")
Found = TypeVar("Found")
Advance = Callable[[str, int, int], None]
"""Told what is being restored, how many of it are done, and of how many."""
Write = Callable[[AsyncSession], Awaitable[Written]]


class Counts(StoredContract):
    """Of one kind of thing."""

    found: int = 0
    added: int = 0
    brought_forward: int = 0
    kept: int = 0
    left_out: int = 0


class Problem(StoredContract):
    """Something that was not restored."""

    key: str
    reason: str


class Restored(StoredContract):
    """What a restore did, or would do."""

    counts: dict[str, Counts]
    unfinished_jobs: int
    """Of the jobs found, those that go on."""
    problems: list[Problem]


@dataclass(slots=True)
class _Restore:
    """One run. Without a database it only looks."""

    reader: BucketReader
    database: Database | None
    lease: Lease | None
    advance: Advance
    now: datetime
    counts: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])
    unfinished_jobs: int = 0
    known_jobs: set[str] = field(default_factory=set[str])
    published: set[tuple[str, int]] = field(default_factory=set[tuple[str, int]])

    async def run(self) -> Restored:
        for kind in ("datasets", "jobs", "models", "versions", "aliases"):
            self.counts[kind] = {}
        reader = self.reader
        dataset_ids, job_ids, model_names = await asyncio.gather(
            asyncio.to_thread(reader.dataset_ids),
            asyncio.to_thread(reader.job_ids),
            asyncio.to_thread(reader.model_names),
        )
        async for dataset_id, dataset in self._each("datasets", dataset_ids, reader.read_dataset):
            if dataset is not None:
                key = names.dataset_record(dataset_id)
                await self._write("datasets", key, lambda session, it=dataset: writing.write_dataset(session, it))
        self.known_jobs.update(job_ids)
        async for job_id, job in self._each("jobs", job_ids, reader.read_job):
            if job is not None:
                await self._restore_job(names.job_spec(job_id), job)
        async for _, model in self._each("models", model_names, reader.read_model):
            await self._restore_model(model)
        return Restored(
            counts={kind: Counts(**counted) for kind, counted in self.counts.items() if kind != "models"},
            unfinished_jobs=self.unfinished_jobs,
            problems=[Problem(key=each.key, reason=each.reason) for each in self.reader.problems],
        )

    async def _restore_job(self, key: str, found: FoundJob) -> None:
        if found.outcome is not None and found.outcome.published is not None:
            self.published.add((found.outcome.published.model_name, found.outcome.published.version))
        job = rebuild(found, self.now)
        self.unfinished_jobs += not JobState(job.row.state).is_terminal
        await self._write("jobs", key, lambda session: writing.write_job(session, job))

    async def _restore_model(self, model: FoundModel) -> None:
        for version in model.versions:
            manifest = version.manifest
            key = names.model_manifest(model.name, manifest.version)
            # As before: a version is shown once its job has ended with it, and the reconciler sees to the others.
            if (model.name, manifest.version) in self.published or manifest.job_id not in self.known_jobs:
                await self._write("versions", key, lambda session, it=version: writing.write_version(session, it))
            else:
                self._count("versions", Written.LEFT_OUT)
        for record in model.aliases:
            key = names.model_alias(model.name, record.alias)
            await self._write("aliases", key, lambda session, it=record: writing.write_alias(session, model.name, it))

    async def _each(
        self, kind: str, items: Sequence[Item], read: Callable[[Item], Found]
    ) -> AsyncGenerator[tuple[Item, Found], None]:
        """What each item is, in order; reads some at a time."""
        self.advance(kind, 0, len(items))
        for start in range(0, len(items), READS_AT_A_TIME):
            chunk = items[start : start + READS_AT_A_TIME]
            read_now = await asyncio.gather(*(asyncio.to_thread(read, item) for item in chunk))
            for number, found in enumerate(zip(chunk, read_now, strict=True), start + 1):
                yield found
                self.advance(kind, number, len(items))

    async def _write(self, kind: str, key: str, write: Write) -> None:
        if self.database is None:
            self._count(kind, None)
            return
        try:
            async with self.database.transaction() as session:
                if self.lease is not None:
                    await guard(session, self.lease)
                written = await write(session)
        except LookupError as error:
            self._refuse(kind, key, str(error.args[0]))
        except (SQLAlchemyError, ValueError, ValidationError) as error:
            self._refuse(kind, key, f"the database does not take it: {str(error).splitlines()[0]}")
        else:
            self._count(kind, written)

    def _refuse(self, kind: str, key: str, reason: str) -> None:
        self._count(kind, None)
        self.reader.problems.append(Unreadable(key, reason))

    def _count(self, kind: str, written: Written | None) -> None:
        counted = self.counts[kind]
        for name in ("found", *([] if written is None else [written.value])):
            counted[name] = counted.get(name, 0) + 1


async def restore(
    store: ObjectStore,
    database: Database | None,
    now: datetime,
    advance: Advance,
    *,
    beside_gateways: bool = False,
) -> Restored:
    """Rebuilds the database, whose schema must be there, from the bucket; without one it only looks.

    While it runs it holds the reconciler's lease, so that a gateway that starts meanwhile waits for the whole picture;
    with `beside_gateways` it does without.

    Raises:
        Conflict: a gateway leads on this database.
        Fenced: a gateway took the lease in the middle, because this process was stopped for long.
        SourceUnreadable: there is no such bucket.
        ObjectStoreUnavailable, DatabaseUnavailable: repeat it later.
    """
    async with _leading(None if beside_gateways else database) as lease:
        return await _Restore(BucketReader(store), database, lease, advance, now).run()


@asynccontextmanager
async def _leading(database: Database | None) -> AsyncGenerator[Lease | None, None]:
    if database is None:
        yield None
        return
    leases = LeaseStore(database)
    lease = await leases.acquire(LEASE_NAME, new_holder(), LEASE_S)
    if lease is None:
        raise Conflict(
            "a gateway works on this database: stop all gateways and repeat (a gateway that was killed counts for "
            "another REKINDLE_LEASE_S seconds), or restore beside them with --beside-gateways"
        )
    renewing = asyncio.create_task(_renew(leases, lease))
    try:
        yield lease
    finally:
        renewing.cancel()
        await asyncio.wait([renewing])
        await leases.release(lease)


async def _renew(leases: LeaseStore, lease: Lease) -> None:
    """Every write checks the lease by itself, so a renewal that fails is only tried again."""
    while True:
        await asyncio.sleep(LEASE_S / 4)
        try:
            await leases.renew(lease, LEASE_S)
        except RetryLater:
            continue
