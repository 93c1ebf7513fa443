"""One pass over the bucket: what is referred to, then each place's garbage, found and removed place by place.

Nothing is remembered between passes, so a pass may be killed at any moment and the next one goes on. Several may run at
a time, and a leader that was frozen may go on with a pass after another has taken over: what it still removes was
garbage when it was found, and stays so (`policy` says why), also if it wakes a year later. What is not garbage for
ever, features, is looked at once more right before it is removed.

What this does not cover: an attempt that was frozen for longer than the grace period in the middle of publishing, after
its job had ended without it, may write a manifest whose tail is gone. The job has ended otherwise, so nobody is ever
shown that version.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TypeVar

import structlog
from prometheus_client import Counter
from sqlalchemy import select

from services.contracts import names
from services.contracts.base import StoredContract
from services.contracts.ids import DatasetId, JobId
from services.runtime.database import Database
from services.runtime.database.tables import DatasetRow
from services.runtime.objects import ObjectInfo, ObjectStore
from services.runtime.settings import Settings
from services.training.garbage import policy
from services.training.garbage.policy import Heap, Kind, Known, References, Rules
from services.training.garbage.reading import Survey
from services.training.jobs import queries
from services.training.restore.reading import BucketReader, Unreadable

READS_AT_A_TIME = 16
FIRST_PASS_AFTER_S = 60.0
"""A gateway that has just begun to lead has more urgent things to do."""
REMOVED_OBJECTS = Counter("rekindle_garbage_removed_objects_total", "Objects of garbage removed.", ["kind"])
REMOVED_BYTES = Counter("rekindle_garbage_removed_bytes_total", "Bytes of garbage removed.", ["kind"])

Item = TypeVar("Item")
Found = TypeVar("Found")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Removed(StoredContract):
    """Garbage of one place that was removed, or would be."""

    kind: Kind
    where: str
    """A job, `model/v3`, a trunk or a dataset."""
    objects: int
    size_bytes: int


class InDoubt(StoredContract):
    """Something damaged or missing; what it may refer to stays."""

    key: str
    reason: str


class Collected(StoredContract):
    """What a pass did, or would do."""

    removed: list[Removed]
    in_doubt: list[InDoubt]
    objects: int
    size_bytes: int


def rules_of(settings: Settings, now: datetime) -> Rules:
    """The rules as the settings have them."""
    kept_s = settings.garbage_features_s
    return Rules(
        now=now,
        grace=timedelta(seconds=settings.garbage_grace_s),
        features_kept=None if kept_s is None else timedelta(seconds=kept_s),
    )


async def read_known(database: Database) -> Known:
    """What the database refers to. Raises `DatabaseUnavailable`."""
    async with database.session() as session:
        unfinished = await queries.list_unfinished(session)
        datasets = await session.scalars(select(DatasetRow.id))
        return Known(
            unfinished_jobs=frozenset(JobId(row.id) for row in unfinished),
            datasets=frozenset(DatasetId(dataset_id) for dataset_id in datasets),
        )


async def collect(store: ObjectStore, known: Known, rules: Rules, *, dry_run: bool) -> Collected:
    """Removes the bucket's garbage, or only says what it is. May be stopped and repeated at any time.

    Raises `ObjectStoreUnavailable`, and `SourceUnreadable` where the bucket cannot be listed.
    """
    return await _Pass(store, known, rules, dry_run=dry_run).run()


@dataclass(slots=True)
class _Pass:
    store: ObjectStore
    known: Known
    rules: Rules
    dry_run: bool
    survey: Survey = field(init=False)
    heaps: list[Heap] = field(default_factory=list[Heap])

    def __post_init__(self) -> None:
        self.survey = Survey(self.store)

    async def run(self) -> Collected:
        reader, survey, rules = BucketReader(self.store), self.survey, self.rules
        job_ids = await asyncio.to_thread(reader.job_ids)
        jobs = await _each(job_ids, survey.job)
        # After the jobs: what a job that had ended by then has published is there.
        models = await _each(await asyncio.to_thread(reader.model_names), survey.model)
        refs = policy.refer(jobs, models, self.known, rules)
        for name in sorted(refs.doubtful_models - {model.name for model in models if not model.is_readable}):
            survey.problems.append(Unreadable(names.model_prefix(name), "lacks a version that a job has published"))
        for model in models:
            await self._sweep(model.versions, lambda it, of=model: survey.version_garbage(of, it, refs, rules))
        await self._sweep(sorted(refs.ended), lambda it: survey.job_garbage(it, refs, rules))
        dataset_ids = await asyncio.to_thread(reader.dataset_ids)
        await self._sweep(dataset_ids, lambda it: survey.upload_garbage(it, refs, rules))
        await self._sweep_features(reader, job_ids, refs)
        await self._remove(await asyncio.to_thread(survey.check_garbage, rules))
        return self._account()

    async def _sweep_features(self, reader: BucketReader, job_ids: Sequence[JobId], refs: References) -> None:
        """As the other sweeps, but a job that was accepted meanwhile may have found a use for them: next time, then."""
        for trunk_id in await asyncio.to_thread(reader.trunk_ids):
            heaps = await asyncio.to_thread(self.survey.feature_garbage, trunk_id, refs, self.rules)
            if heaps and set(await asyncio.to_thread(reader.job_ids)) <= set(job_ids):
                await self._remove([await asyncio.to_thread(self._unchanged, heap) for heap in heaps])

    def _unchanged(self, heap: Heap) -> Heap:
        """Without what has been written again since."""

        def is_same(info: ObjectInfo) -> bool:
            found = self.store.head(info.key)
            return found is not None and found.etag == info.etag

        return Heap(heap.kind, heap.where, (), tuple(info for info in heap.objects if is_same(info)))

    async def _sweep(self, items: Sequence[Item], find: Callable[[Item], list[Heap]]) -> None:
        for start in range(0, len(items), READS_AT_A_TIME):
            chunk = items[start : start + READS_AT_A_TIME]
            for heaps in await _each(chunk, find):
                await self._remove(heaps)

    async def _remove(self, heaps: Sequence[Heap]) -> None:
        for heap in heaps:
            if not self.dry_run:
                await asyncio.to_thread(_delete, self.store, heap)
            self.heaps.append(heap)

    def _account(self) -> Collected:
        removed = [
            Removed(kind=heap.kind, where=heap.where, objects=objects, size_bytes=size_bytes)
            for heap in self.heaps
            for objects, size_bytes in policy.total([heap]).values()
        ]
        return Collected(
            removed=removed,
            in_doubt=[InDoubt(key=each.key, reason=each.reason) for each in self.survey.problems],
            objects=sum(each.objects for each in removed),
            size_bytes=sum(each.size_bytes for each in removed),
        )


async def _each(items: Sequence[Item], read: Callable[[Item], Found]) -> list[Found]:
    """What each item is, in order; reads some at a time."""
    at_a_time = asyncio.Semaphore(READS_AT_A_TIME)

    async def one(item: Item) -> Found:
        async with at_a_time:
            return await asyncio.to_thread(read, item)

    return await asyncio.gather(*(one(item) for item in items))


def _delete(store: ObjectStore, heap: Heap) -> None:
    # Two calls: within one, the order is the store's own.
    store.delete([info.key for info in heap.manifests])
    store.delete([info.key for info in heap.objects])
    for kind, (objects, size_bytes) in policy.total([heap]).items():
        REMOVED_OBJECTS.labels(kind).inc(objects)
        REMOVED_BYTES.labels(kind).inc(size_bytes)


# --- in the gateway -------------------------------------------------------------------------------------------------


async def collect_now(settings: Settings, database: Database, store: ObjectStore, now: datetime) -> Collected:
    """One pass of the leading gateway, with its log. Raises as `collect` and `read_known` do."""
    collected = await collect(store, await read_known(database), rules_of(settings, now), dry_run=False)
    for each in collected.in_doubt:
        log.warning("garbage.in_doubt", key=each.key, reason=each.reason)
    if collected.removed:
        by_kind: dict[str, int] = {}
        for each in collected.removed:
            by_kind[each.kind] = by_kind.get(each.kind, 0) + each.objects
        log.info("garbage.removed", objects=collected.objects, size_bytes=collected.size_bytes, **by_kind)
    return collected
