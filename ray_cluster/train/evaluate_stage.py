"""The evaluate stage: what was trained on the evaluated split, beside its parent where there is one.

Array axes: N image, K class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray

from ray_cluster.train import comparison, dispatch, evaluate, fit_data, tasks
from ray_cluster.train.context import AttemptContext, RunningStage, running
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.machines import Place
from ray_cluster.train.parent import find_trained_images, read_parent
from ray_cluster.train.trained import TrainedModel
from ray_cluster.train.work import Done
from ray_cluster.vision.engines import engine_id
from ray_cluster.vision.network_tails import TrainedNetwork
from ray_cluster.vision.tails import FloatArray, Tail
from ray_cluster.vision.verified import read_verified
from services.contracts.datasets import DatasetManifest, ImageRecord
from services.contracts.jobs import ParentVersion, Stage, TrainingJobSpec
from services.contracts.models import Evaluation, ParentComparison

EVALUATE_IMAGES = 64
"""Images of one task that runs a trained network."""


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is known of the quality of a version."""

    evaluation: Evaluation
    predictions: bytes
    """By image of the evaluated split, as JSON lines."""
    parent_comparison: ParentComparison | None


def run_evaluate(
    context: AttemptContext, spec: TrainingJobSpec, source_uri: str, manifest: DatasetManifest, trained: TrainedModel
) -> Evaluated:
    """Quality on the evaluated split, also beside the parent's where there is one."""
    split = fit_data.evaluated_split(manifest)
    images = fit_data.images_of(manifest, split)
    with running(context, Stage.EVALUATE) as stage:
        if isinstance(trained.tail, Tail):
            with stage.working():
                features_ND = _pooled_features(context, trained, manifest)
                probabilities_NK = trained.tail.probabilities(features_ND)
                uncalibrated_NK = trained.tail.scaled(trained.report.temperature).probabilities(features_ND)
        else:
            probabilities_NK = _run_network(context, stage, source_uri, trained, trained.tail, images)
            uncalibrated_NK = None
        with stage.working():
            labels_N = fit_data.labels_of(manifest, images)
            evaluation = evaluate.evaluate(split.value, manifest.labels, labels_N, probabilities_NK, uncalibrated_NK)
            lines = evaluate.prediction_lines(images, manifest.labels, probabilities_NK)
            compared = _compare(context, spec, manifest, trained, probabilities_NK)
            return Evaluated(evaluation, "".join(f"{line}\n" for line in lines).encode(), compared)


def _pooled_features(context: AttemptContext, trained: TrainedModel, manifest: DatasetManifest) -> FloatArray:
    """Of the evaluated split's images, in their order."""
    index = FeatureIndex.load(context.store, trained.pooled.trunk_id, engine_id(trained.engine))
    split = fit_data.evaluated_split(manifest)
    return fit_data.read_split(context.store, index, trained.pooled, manifest, split, (0,)).features_ND


def _run_network(
    context: AttemptContext,
    stage: RunningStage,
    source_uri: str,
    trained: TrainedModel,
    network: TrainedNetwork,
    images: Sequence[ImageRecord],
) -> FloatArray:
    """The tail's probabilities [N, K], computed on the cluster by what serving runs."""
    trunk, engine = trained.trunk, engine_id(trained.engine)
    with stage.working():
        index = ray.put(None if trunk.is_identity else FeatureIndex.load(context.store, trunk.trunk_id, engine))
        flatbuffer = ray.put(network.flatbuffer)
    starts = range(0, len(images), EVALUATE_IMAGES)

    def submit(start: int, place: Place) -> "ray.ObjectRef[Done[FloatArray]]":
        chunk = list(images[start : start + EVALUATE_IMAGES])
        task = tasks.network_task.options(label_selector=place.selector())
        return task.remote(context.bucket_uri, source_uri, trunk, index, chunk, flatbuffer)

    chunks: dict[int, FloatArray] = {}
    results = dispatch.run_bounded(submit, starts, context.parallelism, context.capacity, Stage.EVALUATE)
    for start, done in results:
        stage.spans.append(done.span)
        chunks[start] = done.result
    return np.concatenate([chunks[start] for start in starts])


def _compare(
    context: AttemptContext,
    spec: TrainingJobSpec,
    manifest: DatasetManifest,
    trained: TrainedModel,
    probabilities_NK: FloatArray,
) -> ParentComparison | None:
    """The parent's head on the evaluated split, beside the new version's probabilities; None without a parent."""
    parent = read_parent(context.store, spec, trained.pooled)
    if parent is None:
        return None
    tail = Tail.from_bytes(read_verified(context.store, parent.manifest.tail))
    predicted = tail.logits(_pooled_features(context, trained, manifest)).argmax(axis=1)
    return comparison.compare(
        ParentVersion(model_name=parent.manifest.model_name, version=parent.manifest.version),
        fit_data.images_of(manifest, fit_data.evaluated_split(manifest)),
        comparison.Answers(parent.labels, [parent.labels[index] for index in predicted]),
        comparison.Answers(manifest.labels, [manifest.labels[index] for index in probabilities_NK.argmax(axis=1)]),
        find_trained_images(context.store, parent.manifest),
        spec.rename_classes,
    )
