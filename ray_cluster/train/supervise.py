"""Sees to it that some trainer runs a job's fit.

Runs in the driver at first. Once the fit has lasted a while, Ray Train is started beside it, whose worker runs another
that finds the fit, takes it over and so relieves the driver's: no moment passes in which nobody looks after it.

It may be killed and started again at any time: the fit goes on meanwhile, and is found where it runs. A trainer that
is lost is replaced by a standby, which resumes from the newest checkpoint; one whose node got notice is replaced
before the node goes. Each replacement raises the fence's term first, so a trainer that was only thought lost can
commit nothing. What counts as lost is what Ray says is dead: silence alone is not.
"""

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import ray
from ray.exceptions import RayError, RayTaskError

from ray_cluster.spot.drains import DrainsUnknown, draining_nodes
from ray_cluster.train import checkpoints, trainers
from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.failures import classify
from ray_cluster.train.fence import raise_term, read_fence
from ray_cluster.train.finished import is_finished
from ray_cluster.train.fit_control import Identity, Order
from ray_cluster.train.fit_job import FitEnd, FitJob, FitNews, FitReturn
from ray_cluster.train.reporter import Reporter
from ray_cluster.train.trainer import NotMine
from ray_cluster.train.trainers import KnownTrainer
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import Fenced
from services.contracts.jobs import Stage
from services.runtime.objects import ObjectStore, open_store

LOOK_S = 1.0
"""How often it looks after the fit: for notices, helpers and standbys. The fit's end and loss are seen at once."""
STANDBY_AFTER_S = 5.0
"""A fit that ends sooner gets no standby beyond the one that was started with the job's first stages: where cores are
shared, starting another takes time from the fit's own first steps."""
RAY_TRAIN_AFTER_S = 30.0
"""A fit that ends sooner is left to the driver alone: Ray Train's six processes need 30 s of a core to start."""
START_S = 2.0
"""How long each look at a starting trainer waits."""

_log = logging.getLogger(__name__)


class Relieved(Exception):
    """Another supervisor of the same attempt looks after the fit now."""


def supervise(job: FitJob) -> FitReturn:
    """Until the fit has ended. Never raises: Ray Train restarts its worker after every exception, and that is for
    lost processes and machines only."""
    try:
        while True:
            try:
                return Supervisor(open_store(job.bucket_uri), job).run()
            except Relieved:
                # The driver's took another trainer for lost at the same moment; it knows that we come after it.
                _log.info("the fit was given to another trainer: looking for that")
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error is classified
        _log.warning("the supervision ends", exc_info=True)
        failure = classify(error)
        return FitReturn(end=FitEnd.GIVEN_UP if failure is None else FitEnd.FAILED, failure=failure)


def standby_after_s() -> float:
    """REKINDLE_STANDBY_AFTER_S of the cluster's environment, for tests."""
    return float(os.environ.get("REKINDLE_STANDBY_AFTER_S", str(STANDBY_AFTER_S)))


def ray_train_after_s() -> float:
    """REKINDLE_RAY_TRAIN_AFTER_S of the cluster's environment, for tests."""
    return float(os.environ.get("REKINDLE_RAY_TRAIN_AFTER_S", str(RAY_TRAIN_AFTER_S)))


@dataclass(slots=True)
class _Helpers:
    """Trainers that were started for this fit, by us or a supervisor before us, by name, and those of them that the
    leader knows of."""

    started: list[str] = field(default_factory=list[str])
    helping: list[str] = field(default_factory=list[str])


class Supervisor:
    """Of one fit, in one attempt."""

    def __init__(self, store: ObjectStore, job: FitJob, on_long: Callable[[], None] = lambda: None) -> None:
        """`on_long` is called once, when the fit has lasted `ray_train_after_s`; it must return at once."""
        self._on_long = on_long
        self._name = secrets.token_hex(4)
        self._store = store
        self._job = job
        self._job_json = job.model_dump_json()
        self._term = read_fence(store, job.job_id).term
        self._helpers = _Helpers()
        self._capacity = CapacityWatch(
            job.spec.resources,
            Reporter(store, job.job_id, job.attempt),
            on_demand_counts=job.on_demand_counts,
        )
        self._standby_after_s = standby_after_s()
        self._ray_train_after_s = ray_train_after_s()
        self._told_long = False
        self._fine_tunes = job.stage is Stage.FINE_TUNE

    def run(self) -> FitReturn:
        """Raises `Relieved` when another supervisor took the fit over, `Fenced` when a newer attempt exists, and
        `RetryLater` when the store does not answer."""
        with contextlib.ExitStack() as afterwards:
            afterwards.callback(self._dismiss_helpers)
            leader = self._find_running()
            if leader is None:
                ended = self._ended_before()
                if ended is not None:
                    return ended
                self._gather()
                leader = self._appoint(())
            began_s = time.monotonic()
            while True:
                try:
                    returned = self._watch(leader, began_s)
                except Relieved:
                    afterwards.pop_all()  # its helpers go on as well: the next supervisor finds them
                    raise
                if returned is not None and returned.end is FitEnd.GIVEN_UP and self._is_superseded():
                    raise Relieved
                if returned is not None and returned.end is not FitEnd.HANDED_OVER:
                    return returned
                lost_at = utc_now() if returned is None else None
                self._job_json = self._job.model_copy(update={"lost_at": lost_at}).model_dump_json()
                leader = self._appoint(_draining())

    def _ended_before(self) -> FitReturn | None:
        """How the fit ended before we came, in a trainer that is gone or at other work; None where it did not."""
        if is_finished(checkpoints.load_newest(self._store, self._job.job_id), self._job.stage):
            return FitReturn(end=FitEnd.DONE)
        if self._store.head(names.attempt_outcome(self._job.job_id, self._job.attempt)) is not None:
            return FitReturn(end=FitEnd.GIVEN_UP)
        return None

    def _is_superseded(self) -> bool:
        """Whether another supervisor of this attempt has given the fit to another trainer."""
        fence = read_fence(self._store, self._job.job_id)
        return fence.attempt == self._job.attempt and fence.term > self._term

    def _dismiss_helpers(self) -> None:
        for name in self._helpers.started:
            trainers.dismiss(name)

    # --- who runs it ---

    def _find_running(self) -> KnownTrainer | None:
        """A trainer that runs the fit already, for an earlier attempt or supervisor, and now for us."""
        for trainer in trainers.find(trainers.PATIENT_S):
            if trainer.view.work == self._job.work and self._take(trainer, self._term):
                _log.info("the fit runs in %s", trainer.name)
                return trainer
        return None

    def _appoint(self, avoiding: Collection[str]) -> KnownTrainer:
        """Gives the fit to a trainer that answers; waits for one where there is none.

        Whoever had it before is fenced first.
        """
        self._raise_term()
        starting: str | None = None
        while True:
            known = trainers.find()
            place = self._capacity.place
            usable = [each for each in known if each.view.node_id not in avoiding and each.suits(place)]
            # A helper has the job in memory already, and so has the standby.
            idle = [each for each in usable if each.view.assists == self._job.work or each.idle]
            # Those that stand by for other jobs come last.
            ours = (None, self._job.work)
            idle.sort(
                key=lambda each: (
                    each.view.assists is None,
                    each.view.ready_for != self._job.work,
                    each.view.stands_by not in ours,
                )
            )
            for trainer in idle:
                if self._take(trainer, self._term):
                    _log.info("the fit goes to %s, term %d", trainer.name, self._term)
                    self._capacity.placed(self._job.stage)
                    return trainer
            if starting is None or starting not in trainers.names_of_all():
                loading = trainers.names_starting(place, known)
                starting = min(loading) if loading else trainers.start(place, tensorflow=self._fine_tunes)
            self._await(starting)
            if self._look_for_machines(trainers.CPUS):
                starting = None

    def _await(self, name: str) -> None:
        try:
            trainers.await_one(name, START_S)
        except RayError as error:
            _log.warning("a trainer was lost while it started: %s", str(error).partition("\n")[0])

    def _look_for_machines(self, cpus: float) -> bool:
        """Reports that trainers wait for a node. Whether other nodes count by now: then those that wait are ended."""
        before = self._capacity.place
        if not self._capacity.look(self._job.stage, cpus, runs=lambda: False):
            return False
        for name in trainers.names_starting(before, trainers.find()):
            trainers.dismiss(name)
        return True

    def _raise_term(self) -> None:
        self._term = raise_term(self._store, self._job.job_id, self._job.attempt)

    def _take(self, trainer: KnownTrainer, term: int) -> bool:
        try:
            return ray.get(trainer.actor.take.remote(self._job_json, term, self._name))
        except RayError:
            return False

    # --- while it runs ---

    def _watch(self, leader: KnownTrainer, fit_began_s: float) -> FitReturn | None:
        """Until the fit ends there; None when the trainer was lost. Looks after helpers, standbys and notices."""
        self._helpers.helping = []
        began_s = time.monotonic()
        identity = Identity(self._job.attempt, self._term)
        key = (self._job.work, identity.attempt, identity.term)
        saved = False
        while True:
            try:
                news = FitNews.model_validate_json(str(ray.get(leader.actor.wait.remote(*key, self._name, LOOK_S))))
                if news.relieved:
                    raise Relieved
                for line in news.said:
                    _log.info(line)
                if news.returned is not None:
                    return news.returned
                self._tell_if_long(fit_began_s)
                draining = _draining()
                if leader.view.node_id in draining:
                    if self._successor(leader, draining) is not None:
                        _log.info("%s has notice: handing over", leader.name)
                        leader.actor.order.remote(*key, Order.HAND_OVER.value)
                    elif not saved:
                        leader.actor.order.remote(*key, Order.SAVE.value)
                        saved = True
                else:
                    self._keep_standby(leader, draining, time.monotonic() - began_s)
                self._grow(leader, key, draining)
            except RayTaskError as error:
                if isinstance(error.cause, NotMine):
                    if self._is_superseded():
                        raise Relieved from error
                    raise Fenced(str(error.cause)) from error
                raise
            except RayError as error:
                _log.warning("%s is lost: %s", leader.name, str(error).partition("\n")[0])
                return None

    def _tell_if_long(self, began_s: float) -> None:
        if not self._told_long and time.monotonic() - began_s >= self._ray_train_after_s:
            self._told_long = True
            self._on_long()

    def _successor(self, leader: KnownTrainer, draining: Collection[str]) -> KnownTrainer | None:
        """A standby that is ready, on a node that stays; one is started where there is none."""
        others = [each for each in trainers.find() if each.name != leader.name and not each.view.running]
        standbys = [each for each in others if each.view.ready_for == self._job.work]
        place = self._capacity.place
        staying = [each for each in standbys if each.view.node_id not in draining and each.suits(place)]
        if not staying:
            trainers.stand_by(place, self._job.work, self._job_json, draining)
        return staying[0] if staying else None

    def _keep_standby(self, leader: KnownTrainer, draining: Collection[str], lasted_s: float) -> None:
        """On another node than the leader's, which may be lost as a whole; where there is no other, on the same."""
        if lasted_s < self._standby_after_s:
            return
        gone_with_it = {leader.view.node_id, *draining}
        others = [node_id for node_id in self._capacity.nodes(trainers.CPUS) if node_id not in gone_with_it]
        avoiding = gone_with_it if others else draining
        trainers.stand_by(self._capacity.place, self._job.work, self._job_json, avoiding, others)

    def _gather(self) -> None:
        """Waits until as many trainers as the spec asks for at least, the leader included, could begin."""
        wanted = self._job.spec.resources.min_workers - 1
        while len(self._recruit(_draining())) < wanted:
            time.sleep(LOOK_S)
            self._look_for_machines(trainers.HELPER_CPUS)
        self._capacity.placed(self._job.stage)

    def _grow(self, leader: KnownTrainer, key: tuple[object, ...], draining: Collection[str]) -> None:
        """Has as many helpers as the spec allows and the cluster has room for."""
        helpers = [each for each in self._recruit(draining) if each.name != leader.name]
        names = [each.name for each in helpers]
        if names != self._helpers.helping:
            _log.info("%d trainers help", len(names))
            ray.get(leader.actor.set_helpers.remote(*key, [each.actor for each in helpers]))
            self._helpers.helping = names

    def _recruit(self, draining: Collection[str]) -> list[KnownTrainer]:
        """Those of our helpers that have loaded the job, by name; starts as many as are missing."""
        wanted = self._job.spec.resources.max_workers - 1
        if wanted == 0:
            return []
        alive = set(trainers.names_of_all())
        known = trainers.find()
        ours = [name for name in self._helpers.started if name in alive]
        ours += [each.name for each in known if each.view.assists == self._job.work and each.name not in ours]
        place, cpus = self._capacity.place, trainers.HELPER_CPUS
        ours += [trainers.start(place, cpus, tensorflow=self._fine_tunes) for _ in range(wanted - len(ours))]
        self._helpers.started = ours
        staying = [
            each for each in known if each.name in ours and each.view.node_id not in draining and not each.view.running
        ]
        return [each for each in staying if each.view.assists == self._job.work or self._assists(each)]

    def _assists(self, trainer: KnownTrainer) -> bool:
        try:
            return ray.get(trainer.actor.assist.remote(self._job_json))
        except RayError:
            return False


def _draining() -> Collection[str]:
    """Nodes that go away; none while nobody can say."""
    try:
        return draining_nodes().keys()
    except DrainsUnknown as error:
        _log.warning("cannot ask which nodes are draining: %s", error)
        return ()
