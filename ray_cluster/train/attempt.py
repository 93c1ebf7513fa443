"""One attempt of a job: `python -m ray_cluster.train.attempt --bucket URI --job JOB_ID --attempt N`.

The entrypoint of a Ray job. Everything that it does is whole or not at all and may be done again, so it can be killed
at any moment, and the next attempt goes on from what is in the bucket. Exits with 0 when the model or the labels were
published, and with 1 otherwise; what happened stands in the attempt's outcome, which a killed or fenced attempt does
not leave.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from ray_cluster.predict.prediction import predict
from ray_cluster.train import stages, trainers
from ray_cluster.train.base_import import import_base
from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.choose_stage import run_choose
from ray_cluster.train.context import AttemptContext
from ray_cluster.train.dispatch import Parallelism
from ray_cluster.train.driver import connect
from ray_cluster.train.evaluate_stage import run_evaluate
from ray_cluster.train.failures import classify
from ray_cluster.train.fence import check_fence
from ray_cluster.train.finished import find_head, find_network
from ray_cluster.train.job_engine import PendingEngine
from ray_cluster.train.preflight_stage import run_preflight
from ray_cluster.train.reporter import Reporter
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.batch_predictions import BatchResult
from services.contracts.errors import InternalError, RetryLater
from services.contracts.ids import JobId
from services.contracts.jobs import (
    AUTO,
    AttemptOutcome,
    BackboneChoice,
    Failure,
    JobKind,
    JobRecord,
    PublishedModel,
    Stage,
    TrainingJobSpec,
)
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore, open_store

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Arguments:
    """The command line."""

    bucket_uri: str
    job_id: JobId
    attempt: int
    feature_parallelism: int | None = None
    """Single-threaded tasks at a time; None takes what the cluster's cores are."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the attempt in the Ray cluster that RAY_ADDRESS names, and returns the exit code."""
    arguments = _parse(argv)
    connect()
    return run(arguments)


def run(arguments: Arguments) -> int:
    """Runs the attempt in the cluster that this process is connected to, and returns the exit code."""
    store = open_store(arguments.bucket_uri)
    try:
        made = run_attempt(store, arguments)
    except Exception as error:  # noqa: BLE001 - the edge of the process: every error is classified
        failure = classify(error)
        if failure is None:
            _log.warning("stopping: %s", error)
            return 1
        _log.error("the attempt failed (%s): %s", failure.failure_class, failure.message, exc_info=error)
        _write_outcome(store, arguments, None, failure)
        return 1
    return 0 if _write_outcome(store, arguments, made, None) else 1


def run_attempt(store: ObjectStore, arguments: Arguments) -> PublishedModel | BatchResult:
    """Publishes the job's model, or its labels. Raises whatever goes wrong; `Fenced` when a newer attempt exists."""
    record = JobRecord.model_validate_json(store.get(names.job_spec(arguments.job_id)))
    check_fence(store, arguments.job_id, arguments.attempt)
    reporter = Reporter(store, arguments.job_id, arguments.attempt)
    context = AttemptContext(
        bucket_uri=arguments.bucket_uri,
        store=store,
        record=record,
        attempt=arguments.attempt,
        reporter=reporter,
        capacity=CapacityWatch(record.resources, reporter),
        parallelism=Parallelism(os.cpu_count() or 1, arguments.feature_parallelism),
    )
    match record.kind:
        case JobKind.TRAIN:
            return _published(train(context))
        case JobKind.IMPORT_BASE:
            return _published(import_base(context))
        case JobKind.PREDICT:
            return predict(context)


def _published(model: ModelManifest) -> PublishedModel:
    evaluation = model.evaluation
    return PublishedModel(
        model_name=model.model_name,
        version=model.version,
        accuracy=evaluation.accuracy if evaluation else None,
        evaluated_split=evaluation.split if evaluation else None,
    )


def train(context: AttemptContext) -> ModelManifest:
    """The story of a training run. The trunk is built, or its engine chosen, and trainers start, while preflight reads
    the images."""
    spec, source_uri = context.record.spec, context.record.source_uri
    if spec is None or source_uri is None:
        raise InternalError(f"job {context.record.job_id} is to train and says not what, or on what")
    choice: BackboneChoice | None = None
    pending = [] if spec.backbone == AUTO else _begin_trunks(context, spec)
    engine = PendingEngine(context, Stage.CHOOSE if spec.backbone == AUTO else Stage.FEATURES)
    found = [each.found for each in pending if each.found is not None]
    if found and len(found) == len(pending):
        engine.begin(found)
    # One that no node could take would outlive the job and ask for a machine for nobody.
    find_trained = find_network if spec.fine_tunes else find_head
    if find_trained(context.store, context.record.job_id) is None:
        place, nodes = context.capacity.place, context.capacity.nodes(trainers.CPUS)
        trainers.prepare(place, nodes, tensorflow=spec.fine_tunes)
    manifest = run_preflight(context, spec, source_uri, pending, engine)
    if spec.backbone == AUTO:
        choice = run_choose(context, spec, source_uri, manifest, engine)
        spec = spec.with_backbone(choice.chosen)
        pending = _begin_trunks(context, spec)
    (pooled, *cuts), chosen = stages.run_features(context, spec, source_uri, manifest, pending, engine)
    trained = stages.run_fit(context, spec, source_uri, manifest, pooled, chosen)
    for cut_trunk in cuts:
        trained = stages.run_fine_tune(context, spec, source_uri, manifest, trained, cut_trunk)
    evaluated = run_evaluate(context, spec, source_uri, manifest, trained)
    return stages.run_publish(context, spec, manifest, trained, evaluated, choice)


def _begin_trunks(context: AttemptContext, spec: TrainingJobSpec) -> list[stages.PendingTrunk]:
    """The trunk that gives pooled features and, where more than a head is trained, the one that ends at the cut."""
    (backbone,) = spec.possible_backbones()
    recipe = stages.recipe_of(backbone)
    pending = [stages.PendingTrunk(context, recipe)]
    if spec.fine_tunes:
        cut = "input" if spec.train == "all" else spec.train
        pending.append(stages.PendingTrunk(context, recipe.model_copy(update={"cut": cut})))
    return pending


def _write_outcome(
    store: ObjectStore, arguments: Arguments, made: PublishedModel | BatchResult | None, failure: Failure | None
) -> bool:
    """Whether the outcome could be written. Without one, the attempt counts as lost."""
    outcome = AttemptOutcome(
        job_id=arguments.job_id,
        attempt=arguments.attempt,
        finished_at=utc_now(),
        published=made if isinstance(made, PublishedModel) else None,
        predicted=made if isinstance(made, BatchResult) else None,
        failure=failure,
    )
    key = names.attempt_outcome(arguments.job_id, arguments.attempt)
    try:
        store.put(key, outcome.model_dump_json().encode(), if_absent=True)
    except RetryLater:
        _log.exception("the outcome could not be written")
        return False
    return True


def _parse(argv: Sequence[str] | None) -> Arguments:
    parser = argparse.ArgumentParser(description="Run one attempt of a job.")
    parser.add_argument("--bucket", required=True, help="s3://bucket/prefix or file:///folder")
    parser.add_argument("--job", required=True)
    parser.add_argument("--attempt", required=True, type=int)
    parser.add_argument("--feature-parallelism", type=int, default=None, help="default: the cluster's cores")
    parsed = parser.parse_args(argv)
    return Arguments(parsed.bucket, JobId(parsed.job), parsed.attempt, parsed.feature_parallelism)


if __name__ == "__main__":
    sys.exit(main())
