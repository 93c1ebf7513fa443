"""The stages of a batch prediction: list the files, label them shard by shard, merge the results.

Whatever an earlier attempt has done is found in the bucket and not done again. A file's labels are in its shard's
result, which is written once; so however often tasks and attempts are killed, repeated or run beside each other, each
file is in the results exactly once, and the bytes of the results are those of an undisturbed run on the same files.
"""

from dataclasses import dataclass

import ray

from ray_cluster.predict import snapshot as snapshots
from ray_cluster.predict import tasks
from ray_cluster.predict.merging import merge
from ray_cluster.predict.snapshot import Shard, Snapshot
from ray_cluster.serve.model_tails import TailKey
from ray_cluster.train import dispatch, publish
from ray_cluster.train.context import AttemptContext, running
from ray_cluster.train.fence import check_fence
from ray_cluster.train.job_engine import PendingEngine, gpu_share
from ray_cluster.train.machines import Place
from ray_cluster.train.work import Done
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.batch_predictions import BatchResult
from services.contracts.errors import InternalError, NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import Stage
from services.contracts.models import EngineChoice, ModelManifest
from services.runtime.objects import ObjectStore, open_store


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done."""

    model: ModelManifest
    source_uri: str
    top_k: int


def predict(context: AttemptContext) -> BatchResult:
    """Labels everything, or finds that an earlier attempt did.

    Raises:
        SourceEmpty, SourceUnreadable: the source.
        NotFound: the version is gone from the bucket.
        Fenced: a newer attempt goes on; then the result is not this one's.
    """
    finished = find_result(context.store, context.record.job_id)
    if finished is not None:
        return finished
    order = _read_order(context)
    engine = PendingEngine(context, Stage.PREDICT)
    engine.begin([order.model.trunk])
    snapshot = run_list(context, order.source_uri)
    run_predict(context, order, snapshot, engine)
    return run_merge(context, order, snapshot)


def find_result(store: ObjectStore, job_id: JobId) -> BatchResult | None:
    """What the job made, or None before it has."""
    try:
        return BatchResult.model_validate_json(store.get(names.prediction_result(job_id)))
    except NotFound:
        return None


def _read_order(context: AttemptContext) -> Order:
    record = context.record
    if record.prediction is None or record.source_uri is None or record.model_version is None:
        raise InternalError(f"job {record.job_id} is to label images and says not which, or with what")
    model = publish.read_version(context.store, record.model_name, record.model_version)
    if model is None:
        raise NotFound(
            f"model {record.model_name!r} has no version {record.model_version} in the bucket",
            {"model_name": record.model_name, "version": record.model_version},
        )
    return Order(model, record.source_uri, record.prediction.top_k)


def run_list(context: AttemptContext, source_uri: str) -> Snapshot:
    """The files to label, the same for every attempt."""
    job_id = context.record.job_id
    with running(context, Stage.LIST) as stage, stage.working():
        snapshot = snapshots.find(context.store, job_id)
        if snapshot is None:
            listed = open_store(source_uri).list("")
            return snapshots.take(context.store, job_id, context.attempt, source_uri, listed)
        stage.skip()
        return snapshot


def run_predict(context: AttemptContext, order: Order, snapshot: Snapshot, engine: PendingEngine) -> None:
    """Labels every shard that has no result; a lost task is run again elsewhere."""
    store, job_id = context.store, context.record.job_id
    with running(context, Stage.PREDICT) as stage:
        finished = _finished_shards(store, job_id)
        done, total = sum(map(snapshot.shard_size, finished)), snapshot.file_count
        if done == total:
            stage.skip()
        context.reporter.progress(Stage.PREDICT, done, total, "images")
        shards = (shard for shard in snapshots.read_shards(store, job_id, snapshot) if shard.number not in finished)
        submit = _submitter(context, order, engine.wait([order.model.trunk]))
        stage.spans += engine.spans
        results = dispatch.run_bounded(submit, shards, context.parallelism, context.capacity, Stage.PREDICT)
        for _, labelled in results:
            stage.spans.append(labelled.span)
            done += labelled.result
            context.reporter.progress(Stage.PREDICT, done, total, "images")


def run_merge(context: AttemptContext, order: Order, snapshot: Snapshot) -> BatchResult:
    """Makes the results visible: their files, then what says that they are whole."""
    store, job_id, model = context.store, context.record.job_id, order.model
    with running(context, Stage.MERGE) as stage, stage.working():
        check_fence(store, job_id, context.attempt)
        merged = merge(store, job_id, snapshot, model.labels, order.top_k)
        result = BatchResult(
            model_name=model.model_name,
            version=model.version,
            trunk_id=model.trunk.trunk_id,
            weights_sha256=model.tail_sha256,
            source_uri=order.source_uri,
            file_count=snapshot.file_count,
            image_count=merged.image_count,
            quarantined_count=merged.quarantined_count,
            ignored_count=snapshot.ignored_count,
            labels=merged.labels,
            predictions_jsonl=merged.predictions_jsonl,
            predictions_csv=merged.predictions_csv,
            quarantine_jsonl=merged.quarantine_jsonl,
            quarantine_csv=merged.quarantine_csv,
            finished_at=utc_now(),
        )
        check_fence(store, job_id, context.attempt)
        key = names.prediction_result(job_id)
        if store.put(key, result.model_dump_json().encode(), if_absent=True) is None:
            result = BatchResult.model_validate_json(store.get(key))
    if merged.first_quarantined is not None:
        first, count = merged.first_quarantined, merged.quarantined_count
        message = f"{count} file(s) were set aside, the first: {first.path}: {first.message}"
        context.reporter.warning(Stage.MERGE, "quarantined", message)
    return result


def _finished_shards(store: ObjectStore, job_id: JobId) -> set[int]:
    prefix = names.prediction_shards(job_id)
    return {int(info.key.removeprefix(prefix).removesuffix(".json")) for info in store.list(prefix)}


def _submitter(context: AttemptContext, order: Order, engine: EngineChoice) -> dispatch.Submit[Shard, Done[int]]:
    trunk, job_id = order.model.trunk, context.record.job_id
    model = TailKey(order.model.model_name, order.model.version)

    def submit(shard: Shard, place: Place) -> "ray.ObjectRef[Done[int]]":
        task = tasks.label_task.options(label_selector=place.selector(), num_gpus=gpu_share(engine))
        return task.remote(
            context.bucket_uri, order.source_uri, job_id, trunk, engine.engine, model, order.top_k, shard
        )

    return submit
