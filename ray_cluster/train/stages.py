"""The stages of a training attempt. Each looks first whether its result is in the bucket already."""

from dataclasses import dataclass

import ray

from ray_cluster.train import cluster, comparison, evaluate, features, fit_data, fit_state, preflight, publish
from ray_cluster.train.checkpoints import Checkpoint
from ray_cluster.train.context import AttemptContext, RunningStage, running
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.fit import find_finished, fit
from ray_cluster.train.fit_data import SplitFeatures
from ray_cluster.train.fit_job import FitJob
from ray_cluster.train.inspection import Inspected
from ray_cluster.train.listing import ListedFile, Listing, read_listing
from ray_cluster.train.machines import Place
from ray_cluster.train.parent import Parent, find_trained_images, read_parent
from ray_cluster.train.work import Done, Span
from ray_cluster.vision import trunks
from ray_cluster.vision.tails import FloatArray, Tail
from ray_cluster.vision.verified import read_verified
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.datasets import DatasetManifest
from services.contracts.errors import InternalError, NotFound
from services.contracts.jobs import ParentVersion, Stage, TrainingJobSpec
from services.contracts.models import (
    Evaluation,
    ModelManifest,
    ObjectRef,
    ParentComparison,
    TrunkManifest,
    TrunkRecipe,
)
from services.runtime.objects import open_store

INSPECT_FILES = 64
"""Files of one preflight task."""


class PendingTrunk:
    """A trunk that is there, or is being built meanwhile in another process."""

    def __init__(self, context: AttemptContext, recipe: TrunkRecipe) -> None:
        """Begins. Raises `WeightsUnusable`."""
        recipe = trunks.resolve_recipe(recipe)
        self._found = trunks.find_trunk(context.store, recipe)
        self._context = context
        self._recipe = recipe
        self.spans: list[Span] = []
        """When it was built; empty where it was there."""
        place = context.capacity.place
        self._begun = None if self._found else (self._build(place), place)

    def wait(self) -> TrunkManifest:
        """Raises what building it raised, e.g. `WeightsUnusable`."""
        if self._found is None:
            assert self._begun is not None  # noqa: S101
            built = cluster.run_one(self._build, self._begun, self._context.capacity, Stage.FEATURES)
            self.spans.append(built.span)
            self._found = built.result
        return self._found

    def _build(self, place: Place) -> "ray.ObjectRef[Done[TrunkManifest]]":
        task = cluster.build_trunk_task.options(label_selector=place.selector())
        return task.remote(self._context.bucket_uri, self._recipe)


def run_preflight(context: AttemptContext, spec: TrainingJobSpec, source_uri: str) -> DatasetManifest:
    """The frozen list of images; reads every image unless this listing was judged before."""
    with running(context, Stage.PREFLIGHT) as stage:
        with stage.working():
            listing = read_listing(open_store(source_uri).list(""))
            preflight.check_listing(listing)
        key = names.dataset_manifest(spec.dataset_id, preflight.fingerprint(listing, spec))
        try:
            manifest = DatasetManifest.model_validate_json(context.store.get(key))
            stage.skip()
        except NotFound:
            inspected = _inspect(context, stage, source_uri, listing)
            with stage.working():
                manifest = preflight.judge(spec.dataset_id, listing, inspected, spec)
                context.store.put(key, manifest.model_dump_json().encode(), if_absent=True)
        preflight.check_quarantine(manifest.report, spec.max_quarantined_fraction)
    for warning in manifest.report.warnings:
        context.reporter.warning(Stage.PREFLIGHT, "dataset", warning)
    if manifest.report.quarantined:
        first = manifest.report.quarantined[0]
        count = len(manifest.report.quarantined)
        message = f"{count} file(s) were set aside, the first: {first.path}: {first.message}"
        context.reporter.warning(Stage.PREFLIGHT, "quarantined", message)
    return manifest


def run_features(
    context: AttemptContext, spec: TrainingJobSpec, source_uri: str, manifest: DatasetManifest, pending: PendingTrunk
) -> TrunkManifest:
    """Runs the trunk over every image whose features are not cached yet; a lost task is run again elsewhere."""
    with running(context, Stage.FEATURES) as stage:
        trunk = pending.wait()
        stage.spans += pending.spans
        stage.found_trunk(trunk.trunk_id)
        with stage.working():
            index = FeatureIndex.load(context.store, trunk.trunk_id)
            at_a_time = context.parallelism.count(context.capacity.place)
            works = features.plan(index, fit_data.views_needed(manifest, spec), at_a_time)
        total = sum(len(work.images) for work in works)
        if not works:
            stage.skip()
        done = 0
        context.reporter.progress(Stage.FEATURES, done, total, "images")
        submit = _submitter(context, source_uri, trunk)
        results = cluster.run_bounded(submit, works, context.parallelism, context.capacity, Stage.FEATURES)
        for _, computed in results:
            stage.spans.append(computed.span)
            done += computed.result
            context.reporter.progress(Stage.FEATURES, done, total, "images")
    return trunk


def run_fit(
    context: AttemptContext, spec: TrainingJobSpec, manifest: DatasetManifest, trunk: TrunkManifest
) -> tuple[Checkpoint, Tail]:
    """Trains the head, unless an earlier attempt of the job finished that."""
    with running(context, Stage.FIT) as stage:
        finished = find_finished(context.store, context.record.job_id)
        if finished is not None:
            stage.skip()
            return finished
        parent = read_parent(context.store, spec, trunk)
        job = FitJob(
            bucket_uri=context.bucket_uri,
            job_id=context.record.job_id,
            attempt=context.attempt,
            spec=spec,
            manifest_key=names.dataset_manifest(manifest.dataset_id, manifest.fingerprint),
            trunk=trunk,
            on_demand_counts=context.capacity.place.on_demand_counts,
            warm_start=None if parent is None else parent.warm_start(),
        )
        returned = fit(job)
        if returned.span is not None:
            stage.spans.append(returned.span)
        with stage.working():
            finished = find_finished(context.store, context.record.job_id)
    if finished is None:
        raise InternalError("the fit ended and its last checkpoint is not in the bucket")
    return finished


@dataclass(frozen=True, slots=True)
class Evaluated:
    """What is known of the quality of a version."""

    evaluation: Evaluation
    predictions: bytes
    """By image of the evaluated split, as JSON lines."""
    parent_comparison: ParentComparison | None


def run_evaluate(
    context: AttemptContext,
    spec: TrainingJobSpec,
    manifest: DatasetManifest,
    trunk: TrunkManifest,
    trained: tuple[Checkpoint, Tail],
) -> Evaluated:
    """Quality on the evaluated split, also beside the parent's where there is one."""
    checkpoint, tail = trained
    uncalibrated = tail.scaled(fit_state.finished_report(checkpoint).temperature)
    with running(context, Stage.EVALUATE) as stage, stage.working():
        split = fit_data.evaluated_split(manifest)
        index = FeatureIndex.load(context.store, trunk.trunk_id)
        rows = fit_data.read_split(context.store, index, trunk, manifest, split, (0,))
        probabilities_NK = tail.probabilities(rows.features_ND)
        evaluation = evaluate.evaluate(
            split.value,
            manifest.labels,
            rows.labels_N,
            probabilities_NK,
            uncalibrated.probabilities(rows.features_ND),
        )
        lines = evaluate.prediction_lines(fit_data.images_of(manifest, split), manifest.labels, probabilities_NK)
        parent = read_parent(context.store, spec, trunk)
        compared = None
        if parent is not None:
            compared = _compare(context, spec, parent, manifest, rows, probabilities_NK)
        return Evaluated(evaluation, "".join(f"{line}\n" for line in lines).encode(), compared)


def run_publish(
    context: AttemptContext,
    spec: TrainingJobSpec,
    manifest: DatasetManifest,
    trunk: TrunkManifest,
    trained: tuple[Checkpoint, Tail],
    evaluated: Evaluated,
) -> ModelManifest:
    """Makes the version visible, whole."""
    checkpoint, tail = trained

    def describe(version: int, tail_ref: ObjectRef, predictions_ref: ObjectRef | None) -> ModelManifest:
        return ModelManifest(
            model_name=context.record.model_name,
            version=version,
            created_at=utc_now(),
            job_id=context.record.job_id,
            attempt=context.attempt,
            trunk=trunk,
            tail=tail_ref,
            tail_sha256=tail.sha256(),
            labels=manifest.labels,
            spec=spec,
            dataset_content_sha256=manifest.content_sha256(),
            train_image_count=_trained_on(manifest),
            evaluation=evaluated.evaluation,
            fit=fit_state.finished_report(checkpoint),
            parent_comparison=evaluated.parent_comparison,
            predictions=predictions_ref,
            fingerprint=checkpoint.manifest.fingerprint,
        )

    with running(context, Stage.PUBLISH) as stage, stage.working():
        model = publish.publish(
            context.store,
            context.record.model_name,
            context.record.job_id,
            context.attempt,
            tail,
            evaluated.predictions,
            describe,
        )
        if model.attempt != context.attempt:
            stage.skip()
    return model


def _inspect(context: AttemptContext, stage: RunningStage, source_uri: str, listing: Listing) -> list[Inspected]:
    chunks = [listing.files[start : start + INSPECT_FILES] for start in range(0, len(listing.files), INSPECT_FILES)]
    total = len(listing.files)
    context.reporter.progress(Stage.PREFLIGHT, 0, total, "images")
    inspected: list[Inspected] = []

    def submit(files: list[ListedFile], place: Place) -> "ray.ObjectRef[Done[list[Inspected]]]":
        return cluster.inspect_task.options(label_selector=place.selector()).remote(source_uri, files)

    results = cluster.run_bounded(submit, chunks, context.parallelism, context.capacity, Stage.PREFLIGHT)
    for _, read in results:
        stage.spans.append(read.span)
        inspected.extend(read.result)
        context.reporter.progress(Stage.PREFLIGHT, len(inspected), total, "images")
    if len(inspected) != total:
        raise InternalError(f"preflight looked at {len(inspected)} of {total} files")
    return inspected


def _submitter(
    context: AttemptContext, source_uri: str, trunk: TrunkManifest
) -> cluster.Submit[features.FeatureWork, Done[int]]:
    def submit(work: features.FeatureWork, place: Place) -> "ray.ObjectRef[Done[int]]":
        task = cluster.feature_task.options(label_selector=place.selector())
        return task.remote(context.bucket_uri, source_uri, trunk, work)

    return submit


def _compare(
    context: AttemptContext,
    spec: TrainingJobSpec,
    parent: Parent,
    manifest: DatasetManifest,
    rows: SplitFeatures,
    probabilities_NK: FloatArray,
) -> ParentComparison:
    """The parent's tail on the evaluated split's rows, beside the new tail's probabilities."""
    tail = Tail.from_bytes(read_verified(context.store, parent.manifest.tail))
    predicted = tail.logits(rows.features_ND).argmax(axis=1)
    return comparison.compare(
        ParentVersion(model_name=parent.manifest.model_name, version=parent.manifest.version),
        fit_data.images_of(manifest, fit_data.evaluated_split(manifest)),
        comparison.Answers(parent.labels, [parent.labels[index] for index in predicted]),
        comparison.Answers(manifest.labels, [manifest.labels[index] for index in probabilities_NK.argmax(axis=1)]),
        find_trained_images(context.store, parent.manifest),
        spec.rename_classes,
    )


def _trained_on(manifest: DatasetManifest) -> int:
    splits = fit_data.trained_splits(manifest)
    return sum(1 for image in manifest.images if image.split in splits)
