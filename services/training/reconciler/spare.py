"""Keeps a spare driver in the cluster while no job runs, and gives it the next attempt (`contracts.spare`).

Saves time and nothing else: an attempt that no spare driver can take gets a Ray job of its own. That an attempt is a
spare driver's is in the database before the spare driver hears of it, so a successor gives it the same one.
"""

import asyncio
import shlex
import time
from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from services.contracts import names
from services.contracts.errors import NotFound
from services.contracts.ids import JobId, new_spare_id, submission_id
from services.contracts.spare import AttemptDriver, GivenAttempt, SpareDriver
from services.runtime.database.tables import JobRow
from services.runtime.objects import ObjectStore
from services.training.context import Training
from services.training.jobs.queries import list_unfinished
from services.training.ray_api import RayStatus, Submission

LOOK_S = 5.0
LONGEST_LOOK_S = 600.0
NOBODY = "spare_none"
"""In the place of a submission id: no spare driver is wanted."""
_RACES = 10

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class SpareKeeper:
    """One per leadership."""

    training: Training
    _free: str | None = None
    """The submission id of the spare driver that nothing was given to, where there is one."""
    _look_at_s: float = 0.0
    _deaths: int = 0
    """Spare drivers in a row that ended before they were ready."""

    def take(self) -> str | None:
        """The submission id of a spare driver for an attempt, for one only; None where there is none."""
        taken, self._free = self._free, None
        if taken is not None:
            self._look_at_s = 0.0
        return taken

    async def look(self) -> None:
        """While there is no job, sees to it that there is a spare driver.

        Raises `ClusterUnavailable`, `DatabaseUnavailable` and `ObjectStoreUnavailable`; the next look tries again.
        """
        if time.monotonic() < self._look_at_s:
            return
        async with self.training.database.session() as session:
            if await list_unfinished(session):
                return  # it would take time from what they are at
        self._free = None
        newest = await asyncio.to_thread(_read, self.training.store)
        if newest is None or await self._is_over(newest.spare):
            # One that dies as it starts would die again, and starting takes seconds of a core.
            self._deaths = self._deaths + 1 if newest is not None and _died_young(newest.spare) else 0
            self._free = await self._replace(newest)
        elif newest.spare.given is None:
            self._free = newest.spare.submission_id
        self._look_at_s = time.monotonic() + min(LOOK_S * 2.0 ** min(self._deaths, 16), LONGEST_LOOK_S)

    async def retire(self) -> None:
        """Has the spare driver end that there is, unless it has an attempt: none is wanted."""
        newest = await asyncio.to_thread(_read, self.training.store)
        if newest is not None and newest.spare.given is None:
            await asyncio.to_thread(_write, self.training.store, SpareDriver(submission_id=NOBODY), newest)

    async def _is_over(self, spare: SpareDriver) -> bool:
        """Whether nothing more is to come of it."""
        job = await self.training.ray.job(spare.submission_id)
        if job is None or job.status not in (RayStatus.PENDING, RayStatus.RUNNING):
            return True
        if spare.given is None:
            return False
        outcome = names.job_outcome(spare.given.job_id)
        return await asyncio.to_thread(self.training.store.head, outcome) is not None

    async def _replace(self, before: "_Newest | None") -> str | None:
        """The submission id of another one; None where another leader was faster."""
        spare = SpareDriver(submission_id=new_spare_id())
        # Written first: it ends at once where it is not the newest.
        if not await asyncio.to_thread(_write, self.training.store, spare, before):
            return None
        await self.training.ray.submit(submission(self.training.store.uri, spare.submission_id))
        log.info("spare.submitted", submission_id=spare.submission_id)
        return spare.submission_id


def submission(bucket_uri: str, spare_id: str) -> Submission:
    """The Ray job of a spare driver."""
    return Submission(
        submission_id=spare_id,
        entrypoint=f"python -m ray_cluster.train.spare --bucket {shlex.quote(bucket_uri)} --id {spare_id}",
        metadata={"name": "spare driver"},
    )


def _died_young(spare: SpareDriver) -> bool:
    """Of one that is over: whether it was never of use to anybody."""
    return not spare.ready and spare.given is None and spare.submission_id != NOBODY


@dataclass(frozen=True, slots=True)
class _Newest:
    spare: SpareDriver
    etag: str


def _read(store: ObjectStore) -> _Newest | None:
    try:
        current = store.get_with_etag(names.spare_driver())
    except NotFound:
        return None
    try:
        return _Newest(SpareDriver.model_validate_json(current.data), current.etag)
    except ValidationError:
        return _Newest(SpareDriver(submission_id=NOBODY), current.etag)


def _write(store: ObjectStore, spare: SpareDriver, over: _Newest | None) -> bool:
    """Whether nobody else has written since."""
    data, key = spare.model_dump_json().encode(), names.spare_driver()
    if over is None:
        return store.put(key, data, if_absent=True) is not None
    return store.put(key, data, if_match=over.etag) is not None


def give(store: ObjectStore, spare_id: str, job_id: JobId, attempt: int) -> bool:
    """Has the spare driver run the attempt. False: it is not the newest, or has another. Idempotent. Blocks."""
    wanted = GivenAttempt(job_id=job_id, attempt=attempt)
    # For whoever looks for the attempt's log, and for a database that is restored.
    driver = AttemptDriver(submission_id=spare_id).model_dump_json().encode()
    store.put(names.attempt_driver(job_id, attempt), driver, if_absent=True)
    for _ in range(_RACES):
        newest = _read(store)
        if newest is None or newest.spare.submission_id != spare_id or newest.spare.given not in (None, wanted):
            return False
        if newest.spare.given == wanted or _write(store, newest.spare.model_copy(update={"given": wanted}), newest):
            return True
    return False


def ray_job_of(row: JobRow) -> str:
    """The Ray submission id of the job's newest attempt."""
    return row.submission_id or submission_id(JobId(row.id), row.attempt)


def submission_of(store: ObjectStore, job_id: JobId, attempt: int) -> str:
    """The Ray submission id under which an attempt runs, or ran. Blocks."""
    try:
        driver = AttemptDriver.model_validate_json(store.get(names.attempt_driver(job_id, attempt)))
    except (NotFound, ValidationError):
        return submission_id(job_id, attempt)
    return driver.submission_id
