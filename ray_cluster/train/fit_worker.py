"""A job's fit, or its fine-tuning, in a trainer. What is trained, and how, is a `TrainingLoop`; this module runs it.

Resumes from the job's newest checkpoint, whichever attempt and trainer wrote it, else begins. Writes checkpoints in
the interval that the spec asks for, and after every step that takes long; the last one, which holds the finished
state, before it returns. All that the next stage needs is then in the bucket.
"""

import logging
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Generic

from ray_cluster.train import checkpoints
from ray_cluster.train.background import Background
from ray_cluster.train.checkpoints import Checkpoint, CheckpointWriter, Snapshot, WriterFault
from ray_cluster.train.failures import classify
from ray_cluster.train.finished import is_finished
from ray_cluster.train.fit_control import FitControl, Identity, Order
from ray_cluster.train.fit_job import FitEnd, FitJob, FitReturn
from ray_cluster.train.here import here
from ray_cluster.train.loaded import LoadedLoop
from ray_cluster.train.reporter import Reporter
from ray_cluster.train.shards import ShardMap, compute_here
from ray_cluster.train.training_loop import State, TrainingLoop
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import Fenced, RetryLater
from services.contracts.ids import JobId
from services.contracts.jobs import Fence, Recovery, TrainerRecord
from services.runtime.objects import ObjectStore, open_store

LONG_STEP_S = 5.0
"""A step that takes longer is followed by a checkpoint, whatever the interval."""
ADOPTION_S = 120.0
"""How long a fit whose attempt was given up holds its next checkpoint back for the next attempt to adopt it."""
REPORTS_S = 30.0
"""How long the end of a fit waits for its reports to be written."""
SAVE_S = 30.0
"""How long a checkpoint before a hand-over may take; without it the next trainer redoes what came after the last."""

_log = logging.getLogger(__name__)


class _Stopped(Exception):
    """The fit stops before it is done, on request."""

    def __init__(self, end: FitEnd) -> None:
        super().__init__(end)
        self.end = end


def load_tensorflow() -> None:
    """What fine-tuning needs, so that it need not wait for it later. Seconds, the first time."""
    from ray_cluster.train import tensorflow_runtime  # noqa: PLC0415 - TensorFlow

    tensorflow_runtime.make_deterministic()


def run(
    loaded: LoadedLoop,
    job: FitJob,
    control: FitControl,
    map_shards: ShardMap = compute_here,
    say: Callable[[str], None] = _log.info,
) -> FitReturn:
    """Trains what the job says. Never raises: what went wrong is in the result.

    `loaded` is the job's loop, loaded or not, maybe for an earlier attempt. `say` gets lines for the job's log.
    """
    try:
        _fit(loaded, job, control, map_shards, say)
    except _Stopped as stopped:
        return FitReturn(end=stopped.end)
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error is classified
        _log.warning("the fit ends", exc_info=True)
        failure = classify(error)
        return FitReturn(end=FitEnd.GIVEN_UP if failure is None else FitEnd.FAILED, failure=failure)
    return FitReturn(end=FitEnd.DONE)


class _Fit(Generic[State]):
    """One run of a loop: what goes out of it, and what comes in between its steps."""

    def __init__(
        self,
        store: ObjectStore,
        job: FitJob,
        control: FitControl,
        loop: TrainingLoop[State],
        say: Callable[[str], None],
        began_at: datetime,
    ) -> None:
        self._store = store
        self._loop = loop
        self._job = job
        self._control = control
        self._fingerprint = loop.fingerprint
        self._say = say
        self._reporting_for = control.identity
        self._reporter = self._reporter_for(control.identity)
        self._began_at = began_at
        self._recovered_from: int | None = None
        self._epochs_reported = 0
        self._step_began_s = self._saved_s = time.monotonic()
        self._background = Background()
        self._background.run(partial(_note_machine, store, job, control.identity, began_at))
        self.writer = CheckpointWriter(self._write, self._warn)

    def resume(self, checkpoint: Checkpoint | None) -> State | None:
        """The checkpoint's state, or None where there is none of this loop."""
        state = None if checkpoint is None else self._loop.restore(checkpoint)
        if checkpoint is None or state is None:
            if self._job.lost_at is not None:
                self._recovered_from = 0
            return None
        manifest = checkpoint.manifest
        _log.info("resuming from attempt %d, step %d", manifest.attempt, manifest.step)
        if manifest.fingerprint != self._fingerprint:
            self._reports().warning(
                self._job.stage,
                "device_changed",
                f"training goes on with {self._fingerprint.model_dump()} after {manifest.fingerprint.model_dump()}: "
                "the weights' last bits may differ from those of an undisturbed run",
            )
        self._recovered_from = self._epochs_reported = state.epoch
        return state

    def after_step(self, state: State) -> None:
        """Reports and saves, then does what was ordered meanwhile. Raises `_Stopped`, `Fenced`."""
        self._report(state)
        now_s = time.monotonic()
        long = now_s - self._step_began_s >= LONG_STEP_S
        self._step_began_s = now_s
        match self._control.next_order():
            case Order.GO_ON:
                if (long or now_s - self._saved_s >= self._job.spec.checkpoint_interval_s) and not state.done:
                    self._saved_s = now_s
                    self.writer.offer(self._loop.snapshot(state))
            case Order.SAVE:
                self.writer.offer(self._loop.snapshot(state))
            case Order.HAND_OVER:
                if not state.done:
                    saved = self.writer.save_now(self._loop.snapshot(state), SAVE_S)
                    _log.info("handing over after step %d, %s", state.step, "saved" if saved else "not saved")
                    raise _Stopped(FitEnd.HANDED_OVER)
            case Order.ABANDON:
                raise _Stopped(FitEnd.GIVEN_UP)

    def _report(self, state: State) -> None:
        reporter, stage = self._reports(), self._job.stage
        if self._recovered_from is not None:
            recovery = Recovery(
                epoch=self._recovered_from,
                lost_at=self._job.lost_at,
                resumed_at=self._began_at,
                first_step_at=utc_now(),
            )
            self._background.run(partial(reporter.recovery, recovery, stage))
            self._recovered_from = None
        if state.epoch > self._epochs_reported:
            self._epochs_reported = state.epoch
            epoch = partial(reporter.epoch, state.history[-1], last=state.done, stage=stage)
            self._background.run(epoch, droppable=not state.done)

    def _write(self, snapshot: Snapshot) -> None:
        """Commits under the identity of whoever wants the fit now."""
        while True:
            identity = self._control.identity
            try:
                checkpoints.commit(
                    self._store, self._job.job_id, identity.attempt, snapshot, self._fingerprint, identity.term
                )
            except Fenced:
                if self._control.identity == identity and not self._may_be_adopted(identity):
                    raise
            else:
                return

    def _may_be_adopted(self, identity: Identity) -> bool:
        """Whether a newer attempt came to want this very fit; waits for that while it is possible."""
        if not _goes_on_without(self._store, self._job.job_id, identity.attempt):
            return False
        _log.info("attempt %d was given up; holding a checkpoint back for the next", identity.attempt)
        return self._control.wait_until_adopted(identity, ADOPTION_S)

    def end(self) -> None:
        """Writes no more checkpoints, and the reports that still wait."""
        try:
            self.writer.close(None)
        except Fenced:
            _log.info("the last checkpoint that was offered is another's to write")
        self._background.close(REPORTS_S)

    def _warn(self, fault: WriterFault) -> None:
        if fault.over:
            message = (
                f"checkpoints could not be written for {fault.lasted_s:.0f} s; they are again, and nothing is lost"
            )
        else:
            message = (
                f"training goes on, and its checkpoints cannot be written: the newest is {fault.lasted_s:.0f} s old "
                f"({fault.error})"
            )
        self._background.run(partial(self._reports().warning, self._job.stage, "checkpoint_delayed", message))

    def _reports(self) -> Reporter:
        identity = self._control.identity
        if identity != self._reporting_for:
            self._reporter = self._reporter_for(identity)
            self._reporting_for = identity
        return self._reporter

    def _reporter_for(self, identity: Identity) -> Reporter:
        return Reporter(self._store, self._job.job_id, identity.attempt, term=identity.term, say=self._say)


def _fit(
    loaded: LoadedLoop, job: FitJob, control: FitControl, map_shards: ShardMap, say: Callable[[str], None]
) -> None:
    began_at = utc_now()
    store = open_store(job.bucket_uri)
    checkpoint = checkpoints.load_newest(store, job.job_id, discard_damaged=True)
    if is_finished(checkpoint, job.stage):
        return
    with loaded.running(map_shards) as loop:
        fit = _Fit(store, job, control, loop, say, began_at)
        try:
            state = fit.resume(checkpoint) or loop.begin()
            while not state.done:
                state = loop.advance(state)
                fit.after_step(state)
            fit.writer.save_now(loop.finish(state), None)
        finally:
            fit.end()


def _note_machine(store: ObjectStore, job: FitJob, identity: Identity, began_at: datetime) -> None:
    """For the job's receipt, which does without where that fails."""
    machine = here()
    if machine is None:
        return
    record = TrainerRecord(stage=job.stage, machine=machine, began_at=began_at)
    key = names.attempt_trainer(job.job_id, identity.attempt, identity.term)
    try:
        store.put(key, record.model_dump_json().encode())
    except RetryLater as error:
        _log.warning("the receipt will lack this machine if it is lost: %s", error)


def _goes_on_without(store: ObjectStore, job_id: JobId, attempt: int) -> bool:
    """Whether the attempt was given up for another attempt, and not the job with it."""
    fence = Fence.model_validate_json(store.get(names.job_fence(job_id)))
    if fence.attempt <= attempt:
        return False
    return store.head(names.job_outcome(job_id)) is None
