"""The stages of a training attempt. Each looks first whether its result is in the bucket already."""

from collections.abc import Sequence
from dataclasses import replace

import ray

from ray_cluster.train import dispatch, feature_pass, fit_data, publish, tasks
from ray_cluster.train.context import AttemptContext, RunningStage, running
from ray_cluster.train.evaluate_stage import Evaluated
from ray_cluster.train.feature_pass import FeatureWork
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.finished import find_head, find_network
from ray_cluster.train.fit import fit
from ray_cluster.train.fit_job import FitJob
from ray_cluster.train.job_engine import PendingEngine, gpu_share
from ray_cluster.train.machines import Place
from ray_cluster.train.parent import read_parent
from ray_cluster.train.trained import TrainedModel
from ray_cluster.train.work import Done, Span
from ray_cluster.vision import trunks
from ray_cluster.vision.engines import engine_id
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.datasets import DatasetManifest, ImageRecord
from services.contracts.errors import InternalError
from services.contracts.jobs import BackboneCandidate, BackboneChoice, Stage, TrainingJobSpec
from services.contracts.models import EngineChoice, ModelManifest, ObjectRef, TrunkManifest, TrunkRecipe


class PendingTrunk:
    """A trunk that is there, or is being built meanwhile in another process."""

    def __init__(self, context: AttemptContext, recipe: TrunkRecipe) -> None:
        """Begins. Raises `WeightsUnusable`."""
        self.recipe = trunks.resolve_recipe(recipe)
        """Names the content of its weights, where they are a file."""
        self._found = trunks.find_trunk(context.store, self.recipe)
        self._context = context
        self.spans: list[Span] = []
        """When it was built; empty where it was there."""
        place = context.capacity.place
        self._begun = None if self._found else (self._build(place), place)

    @property
    def found(self) -> TrunkManifest | None:
        """The trunk, where it is there already."""
        return self._found

    def wait(self, stage: Stage = Stage.FEATURES) -> TrunkManifest:
        """Raises what building it raised, e.g. `WeightsUnusable`. `stage` is what waits for it."""
        if self._found is None:
            assert self._begun is not None  # noqa: S101
            built = dispatch.run_one(self._build, self._begun, self._context.capacity, stage)
            self.spans.append(built.span)
            self._found = built.result
        return self._found

    def _build(self, place: Place) -> "ray.ObjectRef[Done[TrunkManifest]]":
        task = tasks.build_trunk_task.options(label_selector=place.selector())
        return task.remote(self._context.bucket_uri, self.recipe)


def recipe_of(candidate: BackboneCandidate) -> TrunkRecipe:
    """The trunk that gives a backbone's pooled features."""
    return TrunkRecipe(
        backbone=candidate.backbone,
        weights=candidate.resolved_weights(),
        image_size=candidate.resolved_image_size(),
    )


def run_features(
    context: AttemptContext,
    spec: TrainingJobSpec,
    source_uri: str,
    manifest: DatasetManifest,
    pending: Sequence[PendingTrunk],
    engine: PendingEngine,
) -> tuple[list[TrunkManifest], EngineChoice]:
    """Runs each trunk over every image whose features are not cached yet; a lost task is run again elsewhere.

    The last trunk is the one that the version will be on. All are run by one engine.
    """
    with running(context, Stage.FEATURES) as stage:
        built = [each.wait() for each in pending]
        stage.spans += [span for each in pending for span in each.spans]
        stage.found_trunk(built[-1].trunk_id)
        chosen = engine.wait(built)
        stage.spans += engine.spans
        needed = fit_data.views_needed(manifest, spec)
        if not compute_features(context, stage, source_uri, built, needed, chosen):
            stage.skip()
    return built, chosen


def compute_features(
    context: AttemptContext,
    stage: RunningStage,
    source_uri: str,
    built: Sequence[TrunkManifest],
    needed: Sequence[tuple[ImageRecord, Sequence[int]]],
    engine: EngineChoice,
) -> bool:
    """Computes what is not cached yet of these images and views, on each trunk. Whether anything was missing."""
    name = stage.timing.stage
    with stage.working():
        works = [(trunk, work) for trunk in built for work in _plan(context, needed, trunk, engine)]
    done, total = 0, sum(len(work.images) for _, work in works)
    context.reporter.progress(name, done, total, "images")
    submit = _submitter(context, source_uri, engine)
    for _, computed in dispatch.run_bounded(submit, works, context.parallelism, context.capacity, name):
        stage.spans.append(computed.span)
        done += computed.result
        context.reporter.progress(name, done, total, "images")
    return bool(works)


def run_fit(
    context: AttemptContext,
    spec: TrainingJobSpec,
    source_uri: str,
    manifest: DatasetManifest,
    trunk: TrunkManifest,
    engine: EngineChoice,
) -> TrainedModel:
    """Trains the head, unless an earlier attempt of the job finished that."""
    job_id = context.record.job_id
    with running(context, Stage.FIT) as stage:
        finished = find_head(context.store, job_id)
        if finished is None:
            parent = read_parent(context.store, spec, trunk)
            job = _fit_job(context, spec, source_uri, manifest, trunk, engine)
            warm_start = None if parent is None else parent.warm_start()
            _train(stage, job.model_copy(update={"warm_start": warm_start}))
            with stage.working():
                finished = find_head(context.store, job_id)
        else:
            stage.skip()
    if finished is None:
        raise InternalError("the fit ended and its last checkpoint is not in the bucket")
    checkpoint, head = finished
    return TrainedModel(checkpoint, head.report, trunk, trunk, head.tail, engine)


def run_fine_tune(
    context: AttemptContext,
    spec: TrainingJobSpec,
    source_uri: str,
    manifest: DatasetManifest,
    fitted: TrainedModel,
    cut: TrunkManifest,
) -> TrainedModel:
    """Goes on from the fitted head with what is above the cut, unless an earlier attempt finished that."""
    job_id = context.record.job_id
    with running(context, Stage.FINE_TUNE) as stage:
        finished = find_network(context.store, job_id)
        if finished is None:
            job = _fit_job(context, spec, source_uri, manifest, fitted.pooled, fitted.engine)
            _train(stage, job.model_copy(update={"stage": Stage.FINE_TUNE, "cut_trunk": cut}))
            with stage.working():
                finished = find_network(context.store, job_id)
        else:
            stage.skip()
    if finished is None:
        raise InternalError("fine-tuning ended and its last checkpoint is not in the bucket")
    checkpoint, network = finished
    return replace(fitted, checkpoint=checkpoint, trunk=cut, tail=network)


def run_publish(
    context: AttemptContext,
    spec: TrainingJobSpec,
    manifest: DatasetManifest,
    trained: TrainedModel,
    evaluated: Evaluated,
    choice: BackboneChoice | None,
) -> ModelManifest:
    """Makes the version visible, whole. `choice` is how its backbone was chosen, where the job did not name it."""

    def describe(version: int, tail_ref: ObjectRef, predictions_ref: ObjectRef | None) -> ModelManifest:
        return ModelManifest(
            model_name=context.record.model_name,
            version=version,
            created_at=utc_now(),
            job_id=context.record.job_id,
            attempt=context.attempt,
            trunk=trained.trunk,
            tail=tail_ref,
            tail_sha256=trained.tail.sha256(),
            labels=manifest.labels,
            spec=spec,
            dataset_content_sha256=manifest.content_sha256(),
            train_image_count=_trained_on(manifest, spec),
            evaluation=evaluated.evaluation,
            fit=trained.report,
            parent_comparison=evaluated.parent_comparison,
            backbone_choice=choice,
            predictions=predictions_ref,
            fingerprint=trained.checkpoint.manifest.fingerprint,
        )

    with running(context, Stage.PUBLISH) as stage, stage.working():
        model = publish.publish(
            context.store,
            context.record.model_name,
            context.record.job_id,
            context.attempt,
            trained.tail,
            evaluated.predictions,
            describe,
        )
        if model.attempt != context.attempt:
            stage.skip()
    return model


def _plan(
    context: AttemptContext,
    needed: Sequence[tuple[ImageRecord, Sequence[int]]],
    trunk: TrunkManifest,
    engine: EngineChoice,
) -> list[FeatureWork]:
    """What is not cached yet of the trunk's features; nothing where they are the pixels."""
    if trunk.is_identity:
        return []
    index = FeatureIndex.load(context.store, trunk.trunk_id, engine_id(engine))
    at_a_time = context.parallelism.count(context.capacity.place)
    return feature_pass.plan(index, needed, at_a_time)


def _submitter(
    context: AttemptContext, source_uri: str, engine: EngineChoice
) -> dispatch.Submit[tuple[TrunkManifest, FeatureWork], Done[int]]:
    def submit(item: tuple[TrunkManifest, FeatureWork], place: Place) -> "ray.ObjectRef[Done[int]]":
        trunk, work = item
        task = tasks.feature_task.options(label_selector=place.selector(), num_gpus=gpu_share(engine))
        return task.remote(context.bucket_uri, source_uri, trunk, engine.engine, work)

    return submit


def _fit_job(
    context: AttemptContext,
    spec: TrainingJobSpec,
    source_uri: str,
    manifest: DatasetManifest,
    trunk: TrunkManifest,
    engine: EngineChoice,
) -> FitJob:
    return FitJob(
        bucket_uri=context.bucket_uri,
        job_id=context.record.job_id,
        attempt=context.attempt,
        spec=spec,
        manifest_key=names.dataset_manifest(manifest.dataset_id, manifest.fingerprint),
        source_uri=source_uri,
        trunk=trunk,
        trunk_engine=engine_id(engine),
        on_demand_counts=context.capacity.place.on_demand_counts,
    )


def _train(stage: RunningStage, job: FitJob) -> None:
    returned = fit(job)
    if returned.span is not None:
        stage.spans.append(returned.span)


def _trained_on(manifest: DatasetManifest, spec: TrainingJobSpec) -> int:
    splits = fit_data.trained_splits(manifest, spec)
    return sum(1 for image in manifest.images if image.split in splits)
