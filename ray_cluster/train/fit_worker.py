"""A job's fit, in a trainer. Imports TensorFlow: never import this from the driver or the supervisor.

Resumes from the job's newest checkpoint, whichever attempt and trainer wrote it, else begins. Writes checkpoints in
the interval that the spec asks for, and after every epoch that takes long; the last one, which holds the finished
state, before it returns. All that the next stage needs is then in the bucket.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import keras
import numpy as np
import tensorflow as tf

from ray_cluster.train import calibration, checkpoints, fit_data, fit_loop, fit_state, head_recipe, keras_problem
from ray_cluster.train.background import Background
from ray_cluster.train.checkpoints import CheckpointWriter, Snapshot, WriterFault
from ray_cluster.train.failures import classify
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.fit_control import FitControl, Identity, Order
from ray_cluster.train.fit_job import FitEnd, FitJob, FitReturn
from ray_cluster.train.fit_loop import FitSettings, FitState, Phase
from ray_cluster.train.head_recipe import Standardisation
from ray_cluster.train.keras_problem import THREADS, HeadProblem, Rows, device_name, make_deterministic
from ray_cluster.train.lbfgs import Vector
from ray_cluster.train.reporter import Reporter
from ray_cluster.train.shards import ShardMap, compute_here
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import read_verified
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.datasets import DatasetManifest, Split
from services.contracts.errors import Fenced
from services.contracts.ids import JobId
from services.contracts.jobs import Fence, Recovery, Stage
from services.contracts.models import Fingerprint
from services.runtime.objects import ObjectStore, open_store

LONG_EPOCH_S = 5.0
"""An epoch that takes longer is followed by a checkpoint, whatever the interval."""
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


@dataclass(frozen=True, slots=True)
class FitProblem:
    """What a job minimises, and how. The same in every trainer of the job."""

    problem: HeadProblem
    standards: dict[Phase, Standardisation]
    settings: FitSettings


def warm_up() -> None:
    """Fixes what this process computes, and runs TensorFlow once: its first operation takes longer than all others."""
    make_deterministic()
    keras_problem.warm_up()


def run(
    job: FitJob, control: FitControl, map_shards: ShardMap = compute_here, say: Callable[[str], None] = _log.info
) -> FitReturn:
    """Fits the head. Never raises: what went wrong is in the result. `say` gets the lines for the job's log."""
    try:
        _fit(job, control, map_shards, say)
    except _Stopped as stopped:
        return FitReturn(end=stopped.end)
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error is classified
        _log.warning("the fit ends", exc_info=True)
        failure = classify(error)
        return FitReturn(end=FitEnd.GIVEN_UP if failure is None else FitEnd.FAILED, failure=failure)
    finally:
        keras.backend.clear_session()  # the process goes on to other jobs
    return FitReturn(end=FitEnd.DONE)


def load(job: FitJob, map_shards: ShardMap = compute_here) -> FitProblem:
    """Reads the features."""
    keras.utils.set_random_seed(0)  # nothing draws a number; TensorFlow insists on a seed all the same
    store = open_store(job.bucket_uri)
    manifest = DatasetManifest.model_validate_json(store.get(job.manifest_key))
    problem, standards = _problem(store, job, manifest, map_shards)
    settings = FitSettings(
        max_epochs=job.spec.epochs,
        tolerance=head_recipe.TOLERANCE,
        patience=job.spec.early_stopping.patience if job.spec.early_stopping else None,
        refit=fit_data.refits(manifest),
        weight_decays=head_recipe.weight_decays(job.spec, validates=problem.validates),
    )
    return FitProblem(problem, standards, settings)


class _Fit:
    """One run of a job's fit: what goes out of the loop, and what comes in between its steps."""

    def __init__(
        self,
        store: ObjectStore,
        job: FitJob,
        control: FitControl,
        fingerprint: Fingerprint,
        say: Callable[[str], None],
    ) -> None:
        self._store = store
        self._job = job
        self._control = control
        self._fingerprint = fingerprint
        self._say = say
        self._reporting_for = control.identity
        self._reporter = self._reporter_for(control.identity)
        self._began_at = utc_now()
        self._resumed: FitState | None = None
        self._epoch_began_s = self._saved_s = time.monotonic()
        self._background = Background()
        self.writer = CheckpointWriter(self._write, self._warn)

    def resume(self) -> FitState | None:
        """The newest checkpoint's state, or None where there is none."""
        checkpoint = checkpoints.load_newest(self._store, self._job.job_id, discard_damaged=True)
        if checkpoint is None:
            return None
        manifest = checkpoint.manifest
        _log.info("resuming from attempt %d, epoch %d", manifest.attempt, manifest.epoch)
        if manifest.fingerprint != self._fingerprint:
            self._reports().warning(
                Stage.FIT,
                "device_changed",
                f"training goes on with {self._fingerprint.model_dump()} after {manifest.fingerprint.model_dump()}: "
                "the weights' last bits may differ from those of an undisturbed run",
            )
        self._resumed = fit_state.from_checkpoint(checkpoint)
        return self._resumed

    def after_epoch(self, state: FitState) -> None:
        """Reports and saves, then does what was ordered meanwhile. Raises `_Stopped`, `Fenced`."""
        reporter = self._reports()
        if self._resumed is not None:
            recovery = Recovery(epoch=self._resumed.epoch, resumed_at=self._began_at, first_step_at=utc_now())
            self._background.run(partial(reporter.recovery, recovery))
            self._resumed = None
        last = _done(state)
        self._background.run(partial(reporter.epoch, state.history[-1], last=last), droppable=not last)
        now_s = time.monotonic()
        long = now_s - self._epoch_began_s >= LONG_EPOCH_S
        self._epoch_began_s = now_s
        match self._control.next_order():
            case Order.GO_ON:
                if (long or now_s - self._saved_s >= self._job.spec.checkpoint_interval_s) and not _done(state):
                    self._saved_s = now_s
                    self.writer.offer(fit_state.to_snapshot(state))
            case Order.SAVE:
                self.writer.offer(fit_state.to_snapshot(state))
            case Order.HAND_OVER:
                if not _done(state):
                    saved = self.writer.save_now(fit_state.to_snapshot(state), SAVE_S)
                    _log.info("handing over after epoch %d, %s", state.epoch, "saved" if saved else "not saved")
                    raise _Stopped(FitEnd.HANDED_OVER)
            case Order.ABANDON:
                raise _Stopped(FitEnd.GIVEN_UP)

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
        self._background.run(partial(self._reports().warning, Stage.FIT, "checkpoint_delayed", message))

    def _reports(self) -> Reporter:
        identity = self._control.identity
        if identity != self._reporting_for:
            self._reporter = self._reporter_for(identity)
            self._reporting_for = identity
        return self._reporter

    def _reporter_for(self, identity: Identity) -> Reporter:
        return Reporter(self._store, self._job.job_id, identity.attempt, term=identity.term, say=self._say)


def _fit(job: FitJob, control: FitControl, map_shards: ShardMap, say: Callable[[str], None]) -> None:
    store = open_store(job.bucket_uri)
    loaded = load(job, map_shards)
    fingerprint = Fingerprint(
        device=device_name(),
        trunk_engine=f"litert-{version('ai-edge-litert')}",
        tensorflow=tf.__version__,
        keras=keras.__version__,
        threads=THREADS,
    )
    fit = _Fit(store, job, control, fingerprint, say)
    try:
        state = fit.resume() or fit_loop.begin(loaded.problem, loaded.settings)
        finished = fit_loop.run(state, loaded.problem, loaded.settings, fit.after_epoch)
        temperature = _temperature(loaded.problem, finished)
        tail = head_recipe.fold(finished.result(), loaded.standards[finished.result_phase], temperature)
        fit.writer.save_now(fit_state.to_snapshot(finished, tail, temperature), None)
    finally:
        fit.end()


def _temperature(problem: HeadProblem, finished: FitState) -> float:
    """Of SELECT's head, which was not trained on the validation images; 1 where there are none."""
    validation = problem.validation_logits(finished.best_params_P)
    return 1.0 if validation is None else calibration.fit_temperature(*validation)


def _goes_on_without(store: ObjectStore, job_id: JobId, attempt: int) -> bool:
    """Whether the attempt was given up for another attempt, and not the job with it."""
    fence = Fence.model_validate_json(store.get(names.job_fence(job_id)))
    if fence.attempt <= attempt:
        return False
    return store.head(names.job_outcome(job_id)) is None


def _done(state: FitState) -> bool:
    return state.phase is Phase.DONE


def _problem(
    store: ObjectStore, job: FitJob, manifest: DatasetManifest, map_shards: ShardMap
) -> tuple[HeadProblem, dict[Phase, Standardisation]]:
    """Reads the features and sets up both phases, and how each standardises."""
    index = FeatureIndex.load(store, job.trunk.trunk_id)
    views = head_recipe.VIEWS[job.spec.augmentation]
    train = fit_data.read_split(store, index, job.trunk, manifest, Split.TRAIN, views)
    splits = {Phase.SELECT: train}
    validation = None
    if fit_data.images_of(manifest, Split.VALIDATION):
        refit = fit_data.refits(manifest)
        held_out = fit_data.read_split(store, index, job.trunk, manifest, Split.VALIDATION, views if refit else (0,))
        labels_N = held_out.labels_N[: held_out.image_count]
        validation = Rows(held_out.plain(), labels_N, np.full(len(labels_N), 1.0 / len(labels_N)))
        if refit:
            splits[Phase.FINAL] = train.joined(held_out)
    classes = len(manifest.labels)
    standards = {phase: head_recipe.standardisation(split.plain()) for phase, split in splits.items()}
    training = {
        phase: (
            Rows(split.features_ND, split.labels_N, head_recipe.row_weights(split.labels_N, classes, job.spec)),
            standards[phase],
        )
        for phase, split in splits.items()
    }
    starts = _starts(store, job, manifest, standards)
    return HeadProblem(training, validation, classes, starts, map_shards), standards


def _starts(
    store: ObjectStore, job: FitJob, manifest: DatasetManifest, standards: dict[Phase, Standardisation]
) -> dict[Phase, Vector]:
    """The parent's parameters as each phase standardises; empty without a parent that knows any of the classes."""
    if job.warm_start is None:
        return {}
    tail = Tail.from_bytes(read_verified(store, job.warm_start.tail))
    starts = {
        phase: head_recipe.start_from(
            tail, job.warm_start.labels, manifest.labels, standard, job.warm_start.temperature
        )
        for phase, standard in standards.items()
    }
    return {phase: start for phase, start in starts.items() if start is not None}
