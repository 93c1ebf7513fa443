"""A trainer: a process that runs one job's fit at a time, or computes shards for another. TensorFlow loads in it when
it is asked to (`Trainer.load_tensorflow`), or has to fine-tune.

It belongs to nobody: it is a detached actor, so it outlives the driver that started it. A fit that it runs goes on
while the job's driver, its Ray Train controller and worker are replaced, and the next of them adopts it. A trainer
without a fit is a warm standby, and leaves after a while.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ray

from ray_cluster.spot.drains import DrainsUnknown, draining_nodes
from ray_cluster.train import fit_worker
from ray_cluster.train.adam import Vector32
from ray_cluster.train.crew import Crew
from ray_cluster.train.fit_control import FitControl, Identity, Order
from ray_cluster.train.fit_job import FitEnd, FitJob, FitNews, FitReturn
from ray_cluster.train.here import here
from ray_cluster.train.lbfgs import Vector
from ray_cluster.train.loaded import LoadedLoop
from ray_cluster.train.shards import Quantity, ShardResult, ShardTask
from ray_cluster.train.work import Watch
from services.contracts import names
from services.contracts.errors import RetryLater
from services.runtime.objects import open_store

ORPHANED_S = 5.0
"""Silence after which a trainer looks by itself whether its job still wants it."""
GIVEN_UP_S = 300.0
"""Silence after which it saves, stops, and leaves the rest to whoever comes."""
STANDS_BY_S = 10.0
"""For so long a standby is kept for whoever asked for it last."""
KEPT_LINES = 1000
"""Of a job's log, while nobody asks for them; the newest."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrainerView:
    """What a trainer is at."""

    node_id: str
    node_labels: Mapping[str, str]
    work: str | None
    """What it trains (`FitJob.work`), or trained last and still has the end of; null for a standby."""
    identity: Identity | None
    running: bool
    assists: str | None
    """The work for which it computes shards."""
    stands_by: str | None
    """The work that it loads, or has loaded, because somebody asked for that a moment ago."""
    ready_for: str | None
    """The work that it has loaded, to begin with at once."""


class NotMine(Exception):
    """The trainer does not run this fit under this identity, or no longer does."""


class _RunningFit:
    """A fit in its thread."""

    def __init__(self, job: FitJob, identity: Identity, supervisor: str, loaded: LoadedLoop) -> None:
        self.job = job
        self.supervisor = supervisor
        """Who took it last."""
        self.control = FitControl(identity)
        self.crew = Crew(job.work)
        self.said: deque[str] = deque(maxlen=KEPT_LINES)
        self.returned: FitReturn | None = None
        self.ended = threading.Event()

        def run() -> None:
            watch = Watch(here())
            try:
                with watch.working():
                    returned = fit_worker.run(loaded, job, self.control, self.crew, self.said.append)
                self.returned = returned.model_copy(update={"span": watch.spans[0]})
            finally:
                self.ended.set()

        self.thread = threading.Thread(target=run, name=f"fit-{job.job_id}", daemon=True)
        self.thread.start()

    @property
    def running(self) -> bool:
        return not self.ended.is_set()

    def take_said(self) -> list[str]:
        """What was said since the last call."""
        lines: list[str] = []
        while self.said:
            lines.append(self.said.popleft())
        return lines


class Trainer:
    """The actor's methods; `trainers` starts and finds them. Each may be called from several threads at a time."""

    def __init__(self, idle_s: float) -> None:
        """`idle_s` without a fit and without a call end it."""
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._idle_s = idle_s
        self._node_id = ray.get_runtime_context().get_node_id()
        labels: Any = ray.get_runtime_context().get_node_labels()  # its annotation is of another form
        self._node_labels: dict[str, str] = labels
        self._lock = threading.RLock()
        self._fit: _RunningFit | None = None
        self._assisting: LoadedLoop | None = None
        self._standing_by: LoadedLoop | None = None
        self._stood_by_s = 0.0
        """When it was last asked to."""
        self._tensorflow_asked_for = False
        self._used_at_s = time.monotonic()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def look(self) -> TrainerView:
        with self._lock:
            fit, assisting, standing_by = self._fit, self._assisting, self._standing_by
            wanted = standing_by is not None and time.monotonic() - self._stood_by_s < STANDS_BY_S
            return TrainerView(
                node_id=self._node_id,
                node_labels=self._node_labels,
                work=fit.job.work if fit else None,
                identity=fit.control.identity if fit else None,
                running=fit is not None and fit.running,
                assists=assisting.job.work if assisting else None,
                stands_by=standing_by.job.work if standing_by is not None and wanted else None,
                ready_for=standing_by.job.work if standing_by is not None and standing_by.is_loaded else None,
            )

    # --- as a standby ---

    def load_tensorflow(self) -> None:
        """For a job that will fine-tune. Takes seconds; returns at once where an earlier call saw or sees to it."""
        with self._lock:
            if self._tensorflow_asked_for:
                return
            self._tensorflow_asked_for = True
        fit_worker.load_tensorflow()

    def stay(self) -> None:
        """Waits for work as long again as from its start."""
        with self._lock:
            self._used_at_s = time.monotonic()

    def get_ready(self, job_json: str) -> None:
        """Loads the job, to go on with it when its trainer is lost; does nothing while it runs a fit itself.

        Where that is done or under way, the call keeps the standby for the job.
        """
        job = FitJob.model_validate_json(job_json)
        with self._lock:
            self._used_at_s = self._stood_by_s = time.monotonic()
            if self._fit is not None and self._fit.running:
                return
            if self._standing_by is not None and self._standing_by.job.work == job.work:
                return
            self._standing_by = loaded = LoadedLoop(job)
        try:
            loaded.load()
        except Exception:  # noqa: BLE001 - nobody waits for this call; whoever needs the job loads it again
            _log.warning("%s cannot be loaded yet", job.work, exc_info=True)
            with self._lock:
                if self._standing_by is loaded:
                    self._standing_by = None

    # --- as the one who runs the fit ---

    def take(self, job_json: str, term: int, supervisor: str) -> bool:
        """Starts the job's fit, or goes on with it for this attempt and term if it runs here already. `supervisor` is
        a name for whoever asks, and relieves who asked before.

        False: it is busy with another job, or works for a newer attempt or term of this one.
        """
        job = FitJob.model_validate_json(job_json)
        identity = Identity(job.attempt, term)
        with self._lock:
            self._used_at_s = time.monotonic()
            fit = self._fit
            if fit is not None and fit.job.work == job.work and (fit.running or _is_done(fit)):
                adopted = fit.control.adopt(identity)
                if adopted:
                    fit.supervisor = supervisor
                return adopted
            if fit is not None and fit.running:
                return False
            known = [each for each in (self._standing_by, self._assisting) if each and each.job.work == job.work]
            self._assisting = self._standing_by = None
            self._fit = _RunningFit(job, identity, supervisor, known[0] if known else LoadedLoop(job))
            return True

    def wait(self, work: str, attempt: int, term: int, supervisor: str, timeout_s: float) -> str:
        """What there is to hear of the fit after `timeout_s` or at its end, as `FitNews` JSON. Calling it keeps the fit
        wanted.

        Raises `NotMine`.
        """
        fit = self._mine(work, attempt, term)
        fit.ended.wait(timeout_s)
        self._used_at_s = time.monotonic()
        self._mine(work, attempt, term)  # it may have been adopted meanwhile
        if fit.supervisor != supervisor:
            return FitNews(relieved=True).model_dump_json()
        ended = not fit.running  # first: whatever was said by then is told with it
        assert fit.returned is not None or not ended  # noqa: S101
        news = FitNews(said=fit.take_said(), returned=fit.returned if ended else None)
        return news.model_dump_json()

    def order(self, work: str, attempt: int, term: int, order: str) -> None:
        """Hands an order (`Order`) to the fit. Raises `NotMine`."""
        self._mine(work, attempt, term).control.give(Order(order))

    def set_helpers(self, work: str, attempt: int, term: int, helpers: Sequence[Any]) -> None:
        """These trainers compute shards for the fit from now on. Raises `NotMine`."""
        self._mine(work, attempt, term).crew.set(helpers)

    def _mine(self, work: str, attempt: int, term: int) -> _RunningFit:
        with self._lock:
            fit = self._fit
        if fit is None or fit.job.work != work or not fit.control.hear(Identity(attempt, term)):
            raise NotMine(f"attempt {attempt}, term {term} of {work} is not what this trainer works for")
        return fit

    # --- as a helper ---

    def assist(self, job_json: str) -> bool:
        """Loads what the job's shards need. False: it runs a fit itself."""
        job = FitJob.model_validate_json(job_json)
        with self._lock:
            self._used_at_s = time.monotonic()
            if self._fit is not None and self._fit.running:
                return False
            if self._assisting is not None and self._assisting.job.work == job.work:
                return True
        loaded = LoadedLoop(job)
        loaded.load()
        with self._lock:
            self._assisting = loaded
        return True

    def compute_shards(
        self, work: str, quantity: str, rows: str, params_P: Vector | Vector32, shards: list[int]
    ) -> list[ShardResult]:
        """These shards' results, in order. Raises `NotMine`."""
        with self._lock:
            self._used_at_s = time.monotonic()
            assisting = self._assisting
        if assisting is None or assisting.job.work != work:
            raise NotMine(f"this trainer does not assist {work}")
        return assisting.compute(ShardTask(Quantity(quantity), rows, params_P), shards)

    # --- by itself ---

    def _watch(self) -> None:
        """Leaves when idle, soon where its node is about to go; looks after a fit that nobody asks for."""
        while True:
            time.sleep(1.0)
            with self._lock:
                fit, used_at_s = self._fit, self._used_at_s
            if fit is not None and fit.running:
                self._look_after(fit)
                continue
            idle_s = time.monotonic() - used_at_s
            if idle_s > self._idle_s or (idle_s > ORPHANED_S and self._is_draining()):
                _log.info("leaving")
                ray.kill(ray.get_runtime_context().current_actor)

    def _is_draining(self) -> bool:
        try:
            return self._node_id in draining_nodes()
        except DrainsUnknown:
            return False

    def _look_after(self, fit: _RunningFit) -> None:
        silent_s = fit.control.silent_s()
        if silent_s > GIVEN_UP_S:
            fit.control.give(Order.HAND_OVER)
        elif silent_s > ORPHANED_S and _has_ended(fit.job):
            fit.control.give(Order.ABANDON)


def _is_done(fit: _RunningFit) -> bool:
    return fit.returned is not None and fit.returned.end is FitEnd.DONE


def _has_ended(job: FitJob) -> bool:
    try:
        return open_store(job.bucket_uri).head(names.job_outcome(job.job_id)) is not None
    except RetryLater:
        return False
