"""The preflight stage: from the files of a dataset to the frozen list of images, and their features where it can."""

import math
from collections.abc import Sequence

import ray

from ray_cluster.train import dispatch, feature_pass, known_files, preflight, tasks
from ray_cluster.train.context import AttemptContext, RunningStage, running
from ray_cluster.train.early_features import CachedImages, EarlyFeatures
from ray_cluster.train.features import FeatureIndex
from ray_cluster.train.inspection import Inspected
from ray_cluster.train.job_engine import PendingEngine, gpu_share
from ray_cluster.train.listing import ListedFile, Listing, read_listing
from ray_cluster.train.machines import Place
from ray_cluster.train.stages import PendingTrunk
from ray_cluster.train.work import Done
from ray_cluster.vision.engines import engine_id
from services.contracts import names
from services.contracts.datasets import DatasetManifest
from services.contracts.errors import InternalError, NotFound
from services.contracts.ids import DatasetId
from services.contracts.jobs import Stage, TrainingJobSpec
from services.runtime.objects import open_store

INSPECT_FILES = 64
"""Files of one task that only looks at them."""


def run_preflight(
    context: AttemptContext,
    spec: TrainingJobSpec,
    source_uri: str,
    pending: Sequence[PendingTrunk],
    engine: PendingEngine,
) -> DatasetManifest:
    """The frozen list of images; reads every image that no preflight of the dataset has read before, and computes its
    features with that where these trunks are there and their engine is known."""
    with running(context, Stage.PREFLIGHT) as stage:
        with stage.working():
            listing = read_listing(open_store(source_uri).list(""))
            preflight.check_listing(listing)
        key = names.dataset_manifest(spec.dataset_id, preflight.fingerprint(listing, spec))
        try:
            manifest = DatasetManifest.model_validate_json(context.store.get(key))
            stage.skip()
        except NotFound:
            inspected = _inspect(context, stage, spec.dataset_id, source_uri, listing, pending, engine)
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


def _inspect(
    context: AttemptContext,
    stage: RunningStage,
    dataset_id: DatasetId,
    source_uri: str,
    listing: Listing,
    pending: Sequence[PendingTrunk],
    engine: PendingEngine,
) -> list[Inspected]:
    """What each file is. Only those are read that no preflight of the dataset has read before."""
    with stage.working():
        known = known_files.KnownFiles.load(context.store, dataset_id)
        inspected, unknown = known_files.find_all(known, listing.files)
        early = _early_features(context, pending, engine) if unknown else None
        shared = ray.put(early)
    share = 0.0 if early is None else gpu_share(early.engine)
    total = len(listing.files)
    context.reporter.progress(Stage.PREFLIGHT, len(inspected), total, "images")

    def submit(files: list[ListedFile], place: Place) -> "ray.ObjectRef[Done[list[Inspected]]]":
        task = tasks.inspect_task.options(label_selector=place.selector(), num_gpus=share)
        return task.remote(context.bucket_uri, source_uri, dataset_id, files, shared)

    at_a_time = context.parallelism.count(context.capacity.place)
    count = (
        math.ceil(len(unknown) / INSPECT_FILES) if early is None else feature_pass.shard_count(len(unknown), at_a_time)
    )
    parts = [unknown[len(unknown) * part // count : len(unknown) * (part + 1) // count] for part in range(count)]
    results = dispatch.run_bounded(submit, parts, context.parallelism, context.capacity, Stage.PREFLIGHT)
    for _, read in results:
        stage.spans.append(read.span)
        inspected.extend(read.result)
        context.reporter.progress(Stage.PREFLIGHT, len(inspected), total, "images")
    if len(inspected) != total:
        raise InternalError(f"preflight looked at {len(inspected)} of {total} files")
    return inspected


def _early_features(
    context: AttemptContext, pending: Sequence[PendingTrunk], engine: PendingEngine
) -> EarlyFeatures | None:
    """What preflight computes besides; None where something of that is not known yet."""
    chosen, found = engine.chosen, [each.found for each in pending]
    trunks = [trunk for trunk in found if trunk is not None and not trunk.is_identity]
    if chosen is None or None in found or not trunks:
        return None
    indexes = [FeatureIndex.load(context.store, trunk.trunk_id, engine_id(chosen)) for trunk in trunks]
    return EarlyFeatures(trunks, chosen, CachedImages.of(indexes))
