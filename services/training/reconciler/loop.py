"""The reconciler: one leader among all gateways looks at every unfinished job, again and again, and acts.

Nothing is remembered between looks but what saves time. All that decides is in the database, the bucket and the
cluster, so a successor goes on where a dead leader stopped, and every step may be repeated.
"""

import asyncio
from collections.abc import Awaitable, Sequence
from datetime import datetime, timedelta
from functools import partial

import structlog

from services.contracts.base import utc_now
from services.contracts.errors import ClusterUnavailable, Fenced, RetryLater
from services.contracts.ids import JobId
from services.contracts.jobs import CapacityWait, JobState
from services.runtime.database.leases import Lease, LeaseStore, new_holder
from services.runtime.database.tables import JobRow
from services.training.context import Training
from services.training.garbage import operations as garbage
from services.training.idempotency import forget_before
from services.training.jobs import queries
from services.training.jobs.operations import accept
from services.training.models import copies
from services.training.ray_api import RayStatus
from services.training.reconciler import measures, records, transitions
from services.training.reconciler.actor import Actor
from services.training.reconciler.base_model import base_job
from services.training.reconciler.policy import Backoff, JobView, Observation, Rouse, Wait, decide
from services.training.reconciler.serving import ServeKeeper
from services.training.reconciler.spare import LOOK_S as SPARE_LOOK_S
from services.training.reconciler.spare import SpareKeeper, ray_job_of
from services.training.reconciler.transitions import LeasedDatabase

LEASE_NAME = "reconciler"
JOBS_AT_A_TIME = 16
SERVE_INTERVAL_S = 5.0
COPIES_INTERVAL_S = 600.0
KEYS_KEPT = timedelta(days=7)
RELEASE_TIMEOUT_S = 8.0
"""Less than whoever stops a gateway waits for it; a lease that is kept ends by itself, but that takes longer."""
BASE_MAX_ATTEMPTS = 3

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Reconciler:
    """Run one in every gateway process; the lease sees to it that one of them works."""

    def __init__(self, training: Training, *, holder: str | None = None) -> None:
        settings = training.settings
        self._training = training
        self._holder = holder or new_holder()
        self._leases = LeaseStore(training.database)
        self._backoff = Backoff(initial_s=settings.retry_initial_s, max_s=settings.retry_max_s)
        self._troubles: dict[str, str] = {}
        self.is_leading = False

    async def run(self) -> None:
        """Leads whenever it may, until it is cancelled; then it gives the lease back."""
        ttl_s = self._training.settings.lease_s
        while True:
            try:
                lease = await self._leases.acquire(LEASE_NAME, self._holder, ttl_s)
            except RetryLater as error:
                self._complain("lease", error)
                lease = None
            except asyncio.CancelledError:
                await self._give_back(self._leases.abandon(LEASE_NAME, self._holder))
                raise
            if lease is None:
                await asyncio.sleep(ttl_s / 4)
                continue
            log.info("reconciler.leading", holder=lease.holder, epoch=lease.epoch)
            try:
                await self.lead(lease)
            finally:
                await self._give_back(self._leases.release(lease))
            # Whatever ended it may end the next one, too: not at full speed.
            await asyncio.sleep(self._training.settings.reconcile_interval_s)

    async def lead(self, lease: Lease) -> None:
        """Works as the leader until the lease is lost or it is cancelled."""
        self.is_leading = True
        measures.leads()
        spares = SpareKeeper(self._training)
        tasks = [
            asyncio.create_task(self._renew(lease), name="reconciler-renew"),
            asyncio.create_task(self._keep_jobs(lease, spares), name="reconciler-jobs"),
            asyncio.create_task(self._keep_spare(spares), name="reconciler-spare"),
            asyncio.create_task(self._keep_serve(), name="reconciler-serve"),
            asyncio.create_task(self._keep_copies(), name="reconciler-copies"),
            asyncio.create_task(self._keep_clean(), name="reconciler-garbage"),
            asyncio.create_task(self._keep_measures(), name="reconciler-measures"),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_leading = False
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            measures.leads_no_more()
        for error in ended:
            if isinstance(error, Fenced):
                log.warning("reconciler.replaced", reason=error.message)
            elif isinstance(error, Exception):
                log.error("reconciler.stopped", error_type=type(error).__name__, exc_info=error)
        log.info("reconciler.not_leading", holder=lease.holder)

    async def _give_back(self, giving_back: Awaitable[None]) -> None:
        try:
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await giving_back
        except (RetryLater, TimeoutError) as error:
            log.warning("reconciler.lease_kept", reason=str(error))  # it ends by itself

    async def _renew(self, lease: Lease) -> None:
        """Returns when another has the lease. While the database does not answer, writes fail by themselves."""
        ttl_s = self._training.settings.lease_s
        while True:
            await asyncio.sleep(ttl_s / 3)
            try:
                if not await self._leases.renew(lease, ttl_s):
                    return
            except RetryLater as error:
                self._complain("lease", error)

    # --- jobs -------------------------------------------------------------------------------------------------------

    async def _keep_jobs(self, lease: Lease, spares: SpareKeeper) -> None:
        actor = Actor(self._training, LeasedDatabase(self._training.database, lease), spares)
        prepared = False
        while True:
            mark = self._training.wake.mark()
            try:
                prepared = prepared or await self._prepare()
                await self.look(actor)
                measures.looked()
            except RetryLater as error:
                self._complain("jobs", error)
            await self._training.wake.wait(mark, self._training.settings.reconcile_interval_s)

    async def _prepare(self) -> bool:
        """Once per leadership: the base model's job exists, and keys of old requests are forgotten."""
        base = self._training.settings.base_model()
        if base is not None:
            await accept(self._training.database, self._training.store, base_job(base, utc_now()))
        await forget_before(self._training.database, utc_now() - KEYS_KEPT)
        return True

    async def look(self, actor: Actor) -> None:
        """Looks at every unfinished job once and acts. Raises `Fenced` when the lease is another's by now."""
        async with self._training.database.session() as session:
            rows = await queries.list_unfinished(session)
        self._forget_troubles(rows)
        slots = self._training.settings.max_running_jobs - sum(_is_running(row) for row in rows)
        at_a_time = asyncio.Semaphore(JOBS_AT_A_TIME)

        async def look_at(row: JobRow, *, slot_free: bool) -> None:
            async with at_a_time:
                await self._look_at(actor, row, slot_free=slot_free)

        looks: list[asyncio.Task[None]] = []
        for row in rows:
            waits = not _is_running(row)
            looks.append(asyncio.create_task(look_at(row, slot_free=not waits or slots > 0)))
            slots -= waits
        try:
            results = await asyncio.gather(*looks, return_exceptions=True)
        finally:
            for look in looks:
                look.cancel()
        self._account(rows, results)

    def _account(self, rows: Sequence[JobRow], results: Sequence[BaseException | None]) -> None:
        for row, error in zip(rows, results, strict=True):
            match error:
                case None:
                    self._troubles.pop(row.id, None)
                case Fenced():
                    raise error
                case Exception():
                    self._complain(row.id, error)
                case BaseException():
                    raise error

    async def _look_at(self, actor: Actor, row: JobRow, *, slot_free: bool) -> None:
        now = utc_now()
        if row.attempt > 0 and row.retry_at is None:
            row, seen = await self._observe(actor, row)
        else:
            seen = Observation(ray=RayStatus.NOT_FOUND, slot_free=slot_free)
        action = decide(_view(row), seen, now, self._backoff)
        if await actor.act(row, action, now):
            measures.count_action(row, action)
            self._training.changed.send()
            if not isinstance(action, Wait | Rouse):
                # The next step may be due at once, and what ended may have made room for another.
                self._training.wake.send()

    async def _observe(self, actor: Actor, row: JobRow) -> tuple[JobRow, Observation]:
        """What is known of the newest attempt, after its reports were taken over.

        Ray is asked first and the bucket read afterwards: what an attempt wrote before it ended is not missed.
        """
        job_id, store, now = JobId(row.id), self._training.store, utc_now()
        status, message, error_type = RayStatus.NOT_FOUND, "", None
        try:
            job = await self._training.ray.job(ray_job_of(row))
        except ClusterUnavailable as error:
            status = RayStatus.UNREACHABLE
            self._complain("cluster", error)
        else:
            self._troubles.pop("cluster", None)
            if job is not None:
                status, message, error_type = job.status, job.message, job.error_type
                if row.submitted_at is None and await transitions.mark_submitted(actor.leased, row, now):
                    row = await self._reread(row)
        row = await self._take_over_reports(actor, row, now)
        outcome = None
        if status not in (RayStatus.PENDING, RayStatus.RUNNING) or row.state == JobState.EVALUATING:
            outcome = await asyncio.to_thread(records.read_outcome, store, job_id, row.attempt)
            if outcome is not None:
                row = await self._take_over_reports(actor, row, now)  # what it said last, before it ended
        waited = timedelta(0) if row.submitted_at is None else now - row.submitted_at
        seen = Observation(
            ray=status,
            message=message,
            error_type=error_type,
            outcome=outcome,
            waited=waited,
            silent=now - row.updated_at,
        )
        return row, seen

    async def _take_over_reports(self, actor: Actor, row: JobRow, now: datetime) -> JobRow:
        """The row, with what its attempt has reported since."""
        job_id, store = JobId(row.id), self._training.store
        reports = await asyncio.to_thread(records.read_progress, store, job_id, row.attempt, row.progress_seq)
        if not reports or not await transitions.take_over(actor.leased, row, reports, now):
            return row
        measures.count_reports(row, reports)
        self._training.changed.send()
        if any(report.data.get("trunk_id") for report in reports):
            self._training.published.send()
        return await self._reread(row)

    async def _reread(self, row: JobRow) -> JobRow:
        async with self._training.database.session() as session:
            return await queries.find_row(session, row.id) or row

    # --- the spare driver -------------------------------------------------------------------------------------------

    async def _keep_spare(self, spares: SpareKeeper) -> None:
        """Keeps one where that is wanted, and else lets go of the one that there is."""
        wanted, is_retired = self._training.settings.spare_driver, False
        while not is_retired:
            mark = self._training.wake.mark()
            try:
                await (spares.look() if wanted else spares.retire())
                is_retired = not wanted
                self._troubles.pop("spare", None)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with it, jobs go on
                self._complain("spare", error)
            await self._training.wake.wait(mark, SPARE_LOOK_S)
        await asyncio.Event().wait()  # never, and returning would end the leadership

    # --- Serve ------------------------------------------------------------------------------------------------------

    async def _keep_serve(self) -> None:
        keeper = ServeKeeper(self._training)
        while True:
            mark = self._training.published.mark()
            try:
                await keeper.look()
                self._troubles.pop("serve", None)
            except RetryLater as error:
                self._complain("serve", error)
            await self._training.published.wait(mark, SERVE_INTERVAL_S)

    # --- copies in the bucket ---------------------------------------------------------------------------------------

    async def _keep_copies(self) -> None:
        """A predecessor may have died between a change and its copy."""
        while True:
            try:
                await copies.heal(self._training)
                self._troubles.pop("copies", None)
            except RetryLater as error:
                self._complain("copies", error)
                await asyncio.sleep(SERVE_INTERVAL_S)
                continue
            await asyncio.sleep(COPIES_INTERVAL_S)

    # --- garbage ----------------------------------------------------------------------------------------------------

    async def _keep_clean(self) -> None:
        """Collects the bucket's garbage now and then."""
        training, interval_s = self._training, self._training.settings.garbage_interval_s
        if not interval_s:
            await asyncio.Event().wait()  # never, and returning would end the leadership
        await asyncio.sleep(min(interval_s, garbage.FIRST_PASS_AFTER_S))
        while True:
            try:
                await garbage.collect_now(training.settings, training.database, training.store, utc_now())
                self._troubles.pop("garbage", None)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the garbage, jobs go on
                self._complain("garbage", error)
            await asyncio.sleep(interval_s)

    # --- metrics ----------------------------------------------------------------------------------------------------

    async def _keep_measures(self) -> None:
        """Shows on `/metrics` how the jobs stand."""
        while True:
            try:
                await self._measure()
                self._troubles.pop("measures", None)
            except Exception as error:  # noqa: BLE001 - whatever cannot be measured, jobs go on
                self._complain("measures", error)
            measures.show_troubles(self._troubles)
            await asyncio.sleep(measures.INTERVAL_S)

    async def _measure(self) -> None:
        async with self._training.database.session() as session:
            rows = await queries.list_unfinished(session)
        now, newest = utc_now(), partial(measures.newest_checkpoint, self._training.store)
        age = await asyncio.to_thread(measures.checkpoint_age, rows, newest, now)
        measures.show(rows, age, now)

    # --- logs -------------------------------------------------------------------------------------------------------

    def _complain(self, about: str, error: Exception) -> None:
        """Logs trouble once, not at every look."""
        shown = f"{type(error).__name__}: {error}"
        if self._troubles.get(about) == shown:
            return
        self._troubles[about] = shown
        expected = isinstance(error, RetryLater)
        write = log.warning if expected else log.error
        write("reconciler.trouble", about=about, reason=shown, exc_info=None if expected else error)

    def _forget_troubles(self, rows: Sequence[JobRow]) -> None:
        known = {row.id for row in rows} | measures.GENERAL_TROUBLES
        for about in self._troubles.keys() - known:
            del self._troubles[about]


def _is_running(row: JobRow) -> bool:
    """Whether the cluster has, or may have, an attempt of it."""
    return row.attempt > 0 and row.retry_at is None


def _view(row: JobRow) -> JobView:
    max_attempts = row.spec["max_attempts"] if row.spec is not None else BASE_MAX_ATTEMPTS
    return JobView(
        state=JobState(row.state),
        attempt=row.attempt,
        submitted=row.submitted_at is not None,
        cancel_requested=row.cancel_requested,
        max_attempts=int(max_attempts),
        waiting=None if row.waiting is None else CapacityWait.model_validate(row.waiting).sentence,
        unknown_failures=row.unknown_failures,
        infrastructure_failures=row.infrastructure_failures,
        deaths=row.deaths,
        retry_at=row.retry_at,
    )
