"""The choose stage, of jobs with `backbone: auto`: probes the candidates, and writes down which one it is to be.

The choice is in the bucket before anything is done with it, created only if absent, and every later attempt reads it.
The features that it takes are ordinary rows of the cache: those of the chosen backbone are not computed again, and none
are when an attempt after a lost one goes on.
"""

from dataclasses import dataclass

import ray

from ray_cluster.train import backbone_rule, dispatch, probe_sample, stages, tasks
from ray_cluster.train.backbone_rule import Scored
from ray_cluster.train.context import AttemptContext, RunningStage, running
from ray_cluster.train.failures import unwrap
from ray_cluster.train.fence import check_fence
from ray_cluster.train.job_engine import PendingEngine
from ray_cluster.train.machines import Place
from ray_cluster.train.probe import ProbeScore
from ray_cluster.train.work import Done
from ray_cluster.vision.engines import engine_id
from services.contracts import names
from services.contracts.backbones import multiply_adds
from services.contracts.datasets import DatasetManifest
from services.contracts.errors import NotFound, WeightsUnusable
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import BackboneCandidate, BackboneChoice, LeftOutBackbone, Stage, TrainingJobSpec, Weights
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore


def run_choose(
    context: AttemptContext,
    spec: TrainingJobSpec,
    source_uri: str,
    manifest: DatasetManifest,
    engine: PendingEngine,
) -> BackboneChoice:
    """The job's choice, made now or by an earlier attempt; the engine is one that runs all candidates' trunks.

    Raises `WeightsUnusable` when no candidate can be had.
    """
    with running(context, Stage.CHOOSE) as stage:
        choice = find_choice(context.store, context.record.job_id)
        if choice is None:
            choice = _choose(context, stage, spec, source_uri, manifest, engine)
        else:
            stage.skip()
        stage.chose(choice)
    for each in choice.left_out:
        message = f"{each.backbone} at {each.image_size} px was not tried: {each.message}"
        context.reporter.warning(Stage.CHOOSE, "candidate_left_out", message)
    return choice


def _choose(
    context: AttemptContext,
    stage: RunningStage,
    spec: TrainingJobSpec,
    source_uri: str,
    manifest: DatasetManifest,
    engine: PendingEngine,
) -> BackboneChoice:
    candidates = _build(context, stage, spec)
    trunks = list({each.trunk.trunk_id: each.trunk for each in candidates.built}.values())
    # The engine is measured on the last: the cheapest, which the rule prefers.
    trunks.sort(key=lambda trunk: multiply_adds(trunk.backbone, trunk.image_size), reverse=True)
    chosen_engine = engine.wait(trunks)
    stage.spans += engine.spans
    sample = probe_sample.sample(manifest, spec.seed)
    needed = [(image, (0,)) for image in sample.images]
    stages.compute_features(context, stage, source_uri, trunks, needed, chosen_engine)
    shared = ray.put(sample)

    def submit(trunk: TrunkManifest, place: Place) -> "ray.ObjectRef[Done[ProbeScore]]":
        task = tasks.probe_task.options(label_selector=place.selector())
        return task.remote(context.bucket_uri, trunk, engine_id(chosen_engine), shared, spec)

    scores: dict[TrunkId, ProbeScore] = {}
    for trunk, done in dispatch.run_bounded(submit, trunks, context.parallelism, context.capacity, Stage.CHOOSE):
        stage.spans.append(done.span)
        scores[trunk.trunk_id] = done.result
    scored = [each.scored(scores[each.trunk.trunk_id]) for each in candidates.built]
    with stage.working():
        choice = backbone_rule.choose(
            scored, candidates.left_out, class_count=len(sample.labels), fold_count=sample.fold_count
        )
        return _write(context, choice)


@dataclass(frozen=True, slots=True)
class _Built:
    """A candidate that can be had."""

    weights: Weights
    """Named by their content, where they are a file."""
    trunk: TrunkManifest

    def scored(self, score: ProbeScore) -> Scored:
        return Scored(self.trunk.backbone, self.weights, self.trunk.image_size, self.trunk.feature_dim, score)


@dataclass(frozen=True, slots=True)
class _Candidates:
    built: list[_Built]
    """At least one."""
    left_out: list[LeftOutBackbone]


def _build(context: AttemptContext, stage: RunningStage, spec: TrainingJobSpec) -> _Candidates:
    """The candidates' trunks, all of which are begun at once."""
    found = _Candidates([], [])
    begun: list[tuple[BackboneCandidate, stages.PendingTrunk]] = []
    for candidate in spec.possible_backbones():
        try:
            begun.append((candidate, stages.PendingTrunk(context, stages.recipe_of(candidate))))
        except WeightsUnusable as error:
            found.left_out.append(_left_out(candidate, error))
    for candidate, pending in begun:
        try:
            trunk = pending.wait(Stage.CHOOSE)
            found.built.append(_Built(pending.recipe.weights, trunk))
        except Exception as error:
            cause = unwrap(error)
            if not isinstance(cause, WeightsUnusable):
                raise
            found.left_out.append(_left_out(candidate, cause))
        stage.spans += pending.spans
    if not found.built:
        why = "; ".join(f"{each.backbone}: {each.message}" for each in found.left_out)
        raise WeightsUnusable(f"the weights of none of the {len(found.left_out)} candidates can be had: {why}")
    return found


def _left_out(candidate: BackboneCandidate, error: WeightsUnusable) -> LeftOutBackbone:
    return LeftOutBackbone(
        backbone=candidate.backbone,
        weights=candidate.resolved_weights(),
        image_size=candidate.resolved_image_size(),
        message=error.message,
    )


def _write(context: AttemptContext, choice: BackboneChoice) -> BackboneChoice:
    """The choice as it stands in the bucket: one that was there already is kept. Raises `Fenced`."""
    store, job_id = context.store, context.record.job_id
    check_fence(store, job_id, context.attempt)
    key = names.job_backbone_choice(job_id)
    if store.put(key, choice.model_dump_json().encode(), if_absent=True) is not None:
        return choice
    return BackboneChoice.model_validate_json(store.get(key))


def find_choice(store: ObjectStore, job_id: JobId) -> BackboneChoice | None:
    """What an earlier attempt of the job chose, or None."""
    try:
        return BackboneChoice.model_validate_json(store.get(names.job_backbone_choice(job_id)))
    except NotFound:
        return None
