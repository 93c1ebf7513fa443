"""The fit of a head as a loop that a trainer runs."""

import numpy as np

from ray_cluster.train import calibration, fingerprints, fit_data, fit_loop, fit_state, head_recipe
from ray_cluster.train.checkpoints import Checkpoint, Snapshot
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.fit_job import FitJob
from ray_cluster.train.fit_loop import FitSettings, FitState, Phase
from ray_cluster.train.head_recipe import Standardisation
from ray_cluster.train.lbfgs import Vector
from ray_cluster.train.shards import ShardMap, ShardResult, ShardTask
from ray_cluster.train.softmax_problem import HeadProblem, Rows
from ray_cluster.vision.tails import Tail
from ray_cluster.vision.verified import read_verified
from services.contracts.datasets import DatasetManifest, Split
from services.contracts.jobs import TrainingJobSpec
from services.contracts.models import Fingerprint
from services.runtime.objects import ObjectStore


class HeadLoop:
    """Implements `TrainingLoop`; a step is an epoch."""

    def __init__(
        self,
        problem: HeadProblem,
        standards: dict[Phase, Standardisation],
        settings: FitSettings,
        fingerprint: Fingerprint,
    ) -> None:
        self.fingerprint = fingerprint
        """See `TrainingLoop.fingerprint`."""
        self._problem = problem
        self._standards = standards
        self._settings = settings

    def compute(self, task: ShardTask, shard: int) -> ShardResult:
        """See `TrainingLoop.compute`."""
        return self._problem.compute(task, shard)

    def warm_up(self) -> None:
        """See `TrainingLoop.warm_up`."""

    def begin(self) -> FitState:
        """See `TrainingLoop.begin`."""
        return fit_loop.begin(self._problem, self._settings)

    def advance(self, state: FitState) -> FitState:
        """See `TrainingLoop.advance`."""
        return fit_loop.advance(state, self._problem, self._settings)

    def snapshot(self, state: FitState) -> Snapshot:
        """See `TrainingLoop.snapshot`."""
        return fit_state.to_snapshot(state)

    def restore(self, checkpoint: Checkpoint) -> FitState:
        """See `TrainingLoop.restore`."""
        return fit_state.from_checkpoint(checkpoint)

    def finish(self, state: FitState) -> Snapshot:
        """See `TrainingLoop.finish`."""
        temperature = self._temperature(state)
        tail = head_recipe.fold(state.result(), self._standards[state.result_phase], temperature)
        return fit_state.to_snapshot(state, tail, temperature)

    def close(self) -> None:
        """See `TrainingLoop.close`."""

    def _temperature(self, state: FitState) -> float:
        """Of SELECT's head, which was not trained on the validation images; 1 where there are none."""
        validation = self._problem.validation_logits(state.best_params_P)
        return 1.0 if validation is None else calibration.fit_temperature(*validation)


def load(store: ObjectStore, job: FitJob, map_shards: ShardMap) -> HeadLoop:
    """Reads the features, and sets up both phases and how each standardises."""
    fingerprints.make_deterministic()
    manifest = DatasetManifest.model_validate_json(store.get(job.manifest_key))
    index = FeatureIndex.load(store, job.trunk.trunk_id, job.trunk_engine)
    views = head_recipe.VIEWS[job.spec.augmentation]
    refit = fit_data.refits(manifest, job.spec)
    train = fit_data.read_split(store, index, job.trunk, manifest, Split.TRAIN, views)
    splits = {Phase.SELECT: train}
    validation = None
    if fit_data.images_of(manifest, Split.VALIDATION):
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
    problem = HeadProblem(training, validation, classes, starts, map_shards)
    settings = settings_of(job.spec, refit=refit, validates=problem.validates)
    return HeadLoop(problem, standards, settings, fingerprints.of_numpy(job.trunk_engine))


def settings_of(spec: TrainingJobSpec, *, refit: bool, validates: bool) -> FitSettings:
    """How the spec wants a head fitted; `validates`: there are images to validate on."""
    return FitSettings(
        max_epochs=spec.epochs,
        tolerance=head_recipe.TOLERANCE,
        patience=spec.early_stopping.patience if spec.early_stopping else None,
        refit=refit,
        weight_decays=head_recipe.weight_decays(spec, validates=validates),
    )


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
