"""The fit in a Ray Train worker. Imports TensorFlow: never import this from the driver.

Resumes from the job's newest checkpoint, whichever attempt wrote it, else begins. Writes checkpoints in the interval
that the spec asks for, and the last one, which holds the finished state, before it returns. All that the next stage
needs is then in the bucket.
"""

import logging
import time
from importlib.metadata import version

import keras
import numpy as np
import tensorflow as tf

from ray_cluster.train import checkpoints, fit_data, fit_loop, fit_state, head_recipe
from ray_cluster.train.checkpoints import CheckpointWriter, Snapshot
from ray_cluster.train.failures import classify
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.fit_job import FitJob, FitReturn
from ray_cluster.train.fit_loop import FitSettings, FitState, Phase
from ray_cluster.train.head_recipe import Standardisation
from ray_cluster.train.keras_problem import THREADS, HeadProblem, Rows, device_name, make_deterministic
from ray_cluster.train.reporter import Reporter
from services.contracts.datasets import DatasetManifest, Split
from services.contracts.errors import Fenced, RetryLater
from services.contracts.ids import JobId
from services.contracts.jobs import Stage
from services.contracts.models import Fingerprint
from services.runtime.objects import ObjectStore, open_store

_log = logging.getLogger(__name__)


def run(job: FitJob) -> FitReturn:
    """Fits the head. Nothing but the loss of the process ends this with an exception: Ray Train restarts the worker
    after every exception, and that is for lost processes and machines only."""
    try:
        _fit(job)
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error is classified
        _log.warning("the fit ends", exc_info=True)
        return FitReturn(fenced=isinstance(error, Fenced), failure=classify(error))
    return FitReturn(fenced=False, failure=None)


def _fit(job: FitJob) -> None:
    make_deterministic()
    store = open_store(job.bucket_uri)
    reporter = Reporter(store, job.job_id, job.attempt)
    manifest = DatasetManifest.model_validate_json(store.get(job.manifest_key))
    fingerprint = Fingerprint(
        device=device_name(),
        trunk_engine=f"litert-{version('ai-edge-litert')}",
        tensorflow=tf.__version__,
        keras=keras.__version__,
        threads=THREADS,
    )
    problem, standards = _problem(store, job, manifest)
    settings = FitSettings(
        max_epochs=job.spec.epochs,
        tolerance=head_recipe.TOLERANCE,
        patience=job.spec.early_stopping.patience if job.spec.early_stopping else None,
        refit=fit_data.refits(manifest),
    )
    state = _resume(store, job.job_id, reporter, fingerprint) or fit_loop.begin(problem)

    def write(snapshot: Snapshot) -> None:
        checkpoints.commit(store, job.job_id, job.attempt, snapshot, fingerprint)

    def warn(error: RetryLater) -> None:
        reporter.warning(Stage.FIT, error.code, f"a checkpoint could not be written, training goes on: {error}")

    writer = CheckpointWriter(write, warn)
    last_offer = time.monotonic()

    def after_epoch(state: FitState) -> None:
        nonlocal last_offer
        reporter.epoch(state.history[-1], last=state.phase is Phase.DONE)
        if time.monotonic() - last_offer >= job.spec.checkpoint_interval_s:
            last_offer = time.monotonic()
            writer.offer(fit_state.to_snapshot(state))

    finished = fit_loop.run(state, problem, settings, after_epoch)
    tail = head_recipe.fold(finished.result(), standards[finished.result_phase])
    writer.close(fit_state.to_snapshot(finished, tail))


def _resume(store: ObjectStore, job_id: JobId, reporter: Reporter, fingerprint: Fingerprint) -> FitState | None:
    checkpoint = checkpoints.load_newest(store, job_id)
    if checkpoint is None:
        return None
    _log.info("resuming from attempt %d, epoch %d", checkpoint.manifest.attempt, checkpoint.manifest.epoch)
    if checkpoint.manifest.fingerprint != fingerprint:
        reporter.warning(
            Stage.FIT,
            "device_changed",
            f"training goes on with {fingerprint.model_dump()} after {checkpoint.manifest.fingerprint.model_dump()}: "
            "the weights' last bits may differ from those of an undisturbed run",
        )
    return fit_state.from_checkpoint(checkpoint)


def _problem(
    store: ObjectStore, job: FitJob, manifest: DatasetManifest
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
    return HeadProblem(training, validation, classes, job.spec.weight_decay), standards
