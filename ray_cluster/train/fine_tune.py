"""Fine-tuning as a loop that a trainer runs. Imports TensorFlow."""

from collections.abc import Sequence

import keras
import numpy as np

from ray_cluster.train import (
    checkpoints,
    fine_tune_loop,
    fine_tune_state,
    fingerprints,
    fit_data,
    fit_state,
    head_recipe,
    tensorflow_runtime,
)
from ray_cluster.train.checkpoints import Checkpoint, Snapshot
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.fine_tune_data import CachedExamples, DecodedExamples, Examples
from ray_cluster.train.fine_tune_loop import FineTuneSettings, FineTuneState
from ray_cluster.train.fine_tune_problem import Images, NetworkProblem, Recipe
from ray_cluster.train.fit_job import FitJob
from ray_cluster.train.fit_state import FittedHead
from ray_cluster.train.shards import ShardMap, ShardResult, ShardTask
from ray_cluster.vision.uppers import export_tail, load_upper
from services.contracts.datasets import DatasetManifest, Split
from services.contracts.errors import InternalError
from services.contracts.models import Fingerprint, TrunkManifest
from services.runtime.objects import ObjectStore, open_store


class FineTuneLoop:
    """Implements `TrainingLoop`; a step is a batch."""

    def __init__(
        self,
        problem: NetworkProblem,
        settings: FineTuneSettings,
        head: FittedHead,
        base_step: int,
        fingerprint: Fingerprint,
    ) -> None:
        """Begins from the fitted head, whose checkpoint has the step `base_step`."""
        self.fingerprint = fingerprint
        """See `TrainingLoop.fingerprint`."""
        self._problem = problem
        self._settings = settings
        self._head = head
        self._base_step = base_step

    def compute(self, task: ShardTask, shard: int) -> ShardResult:
        """See `TrainingLoop.compute`."""
        return self._problem.compute(task, shard)

    def warm_up(self) -> None:
        """See `TrainingLoop.warm_up`. TensorFlow compiles a function when it is first called."""
        self._problem.warm_up(self._problem.start(self._head.tail))

    def begin(self) -> FineTuneState:
        """See `TrainingLoop.begin`."""
        return fine_tune_loop.begin(self._problem, self._problem.start(self._head.tail), self._base_step)

    def advance(self, state: FineTuneState) -> FineTuneState:
        """See `TrainingLoop.advance`."""
        return fine_tune_loop.advance(state, self._problem, self._settings)

    def snapshot(self, state: FineTuneState) -> Snapshot:
        """See `TrainingLoop.snapshot`."""
        return fine_tune_state.to_snapshot(state, self._head)

    def restore(self, checkpoint: Checkpoint) -> FineTuneState | None:
        """See `TrainingLoop.restore`."""
        return fine_tune_state.from_checkpoint(checkpoint)

    def finish(self, state: FineTuneState) -> Snapshot:
        """See `TrainingLoop.finish`. The network of the best epoch, exported for evaluation and serving."""
        head = self._problem.finish(state.best_params_P)
        return fine_tune_state.finished_snapshot(state, self._head, export_tail(self._problem.upper, head))

    def close(self) -> None:
        """See `TrainingLoop.close`."""
        keras.backend.clear_session()


def load(store: ObjectStore, job: FitJob, map_shards: ShardMap) -> FineTuneLoop:
    """Reads the fitted head, the pretrained network above the cut, and what it is trained on."""
    fingerprints.make_deterministic()
    tensorflow_runtime.make_deterministic()
    keras.utils.set_random_seed(0)  # another job may have left it elsewhere
    checkpoint = checkpoints.load_newest(store, job.job_id)
    head = None if checkpoint is None else fit_state.finished_head(checkpoint)
    if checkpoint is None or head is None or job.cut_trunk is None:
        raise InternalError(f"{job.job_id} is to be fine-tuned, and its head is not fitted")
    manifest = DatasetManifest.model_validate_json(store.get(job.manifest_key))
    pooled = FeatureIndex.load(store, job.trunk.trunk_id, job.trunk_engine)
    plain = fit_data.read_split(store, pooled, job.trunk, manifest, Split.TRAIN, (0,))
    views = head_recipe.VIEWS[job.spec.augmentation]
    training = _images(store, job, job.cut_trunk, manifest, Split.TRAIN, views)
    wanted = job.spec.fine_tuning
    problem = NetworkProblem(
        load_upper(store, job.cut_trunk),
        head_recipe.standardisation(plain.features_ND),
        len(manifest.labels),
        Images(
            training,
            plain.labels_N,
            head_recipe.row_weights(plain.labels_N, len(manifest.labels), job.spec),
        ),
        _validation(store, job, job.cut_trunk, manifest),
        Recipe(job.spec.seed, wanted.batch_size, wanted.dropout, head.report.weight_decay, views),
        map_shards,
    )
    settings = FineTuneSettings(
        wanted.epochs, wanted.batch_size, wanted.learning_rate, wanted.block_rate, wanted.patience
    )
    fingerprint = tensorflow_runtime.of_tensorflow(job.trunk_engine)
    return FineTuneLoop(problem, settings, head, checkpoint.manifest.step, fingerprint)


def _validation(store: ObjectStore, job: FitJob, trunk: TrunkManifest, manifest: DatasetManifest) -> Images | None:
    records = fit_data.images_of(manifest, Split.VALIDATION)
    if not records:
        return None
    labels_N = fit_data.labels_of(manifest, records)
    examples = _images(store, job, trunk, manifest, Split.VALIDATION, (0,))
    return Images(examples, labels_N, np.full(len(labels_N), 1.0 / len(labels_N)))


def _images(
    store: ObjectStore,
    job: FitJob,
    trunk: TrunkManifest,
    manifest: DatasetManifest,
    split: Split,
    views: Sequence[int],
) -> Examples:
    records = fit_data.images_of(manifest, split)
    if trunk.is_identity:
        return DecodedExamples(open_store(job.source_uri), records, trunk.image_size)
    return CachedExamples(store, FeatureIndex.load(store, trunk.trunk_id, job.trunk_engine), trunk, records, views)
