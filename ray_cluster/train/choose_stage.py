"""The choose stage, of jobs with `backbone: auto`: probes the candidates, and writes down which one it is to be.

The choice is in the bucket before anything is done with it, created only if absent, and every later attempt reads it.
The features that it takes are ordinary rows of the cache: those of the chosen backbone are not computed again, and none
are when an attempt after a lost one goes on.
"""

import ray

from ray_cluster.train import backbone_rule, dispatch, probe_sample, stages, tasks
from ray_cluster.train.backbone_rule import Scored
from ray_cluster.train.context import AttemptContext, RunningStage, running
from ray_cluster.train.failures import unwrap
from ray_cluster.train.fence import check_fence
from ray_cluster.train.machines import Place
from ray_cluster.train.probe import ProbeScore
from ray_cluster.train.work import Done
from services.contracts import names
from services.contracts.datasets import DatasetManifest
from services.contracts.errors import NotFound, WeightsUnusable
from services.contracts.ids import JobId
from services.contracts.jobs import BackboneCandidate, BackboneChoice, LeftOutBackbone, Stage, TrainingJobSpec
from services.contracts.models import TrunkManifest
from services.runtime.objects import ObjectStore


class BackboneSearch:
    """A job's choice: known from an earlier attempt, or to be made among trunks that are being built meanwhile."""

    def __init__(self, context: AttemptContext, spec: TrainingJobSpec) -> None:
        """Begins to build. A candidate whose weights cannot be had is left out."""
        self._context = context
        self._spec = spec
        self._known = find_choice(context.store, context.record.job_id)
        self._pending: list[tuple[BackboneCandidate, stages.PendingTrunk]] = []
        self._left_out: list[LeftOutBackbone] = []
        for candidate in () if self._known else spec.possible_backbones():
            try:
                self._pending.append((candidate, stages.PendingTrunk(context, stages.recipe_of(candidate))))
            except WeightsUnusable as error:
                self._leave_out(candidate, error)

    def run(self, source_uri: str, manifest: DatasetManifest) -> BackboneChoice:
        """The choice. Raises `WeightsUnusable` when no candidate's weights can be had."""
        with running(self._context, Stage.CHOOSE) as stage:
            if self._known is None:
                choice = self._choose(stage, source_uri, manifest)
            else:
                choice = self._known
                stage.skip()
            stage.chose(choice)
        for each in choice.left_out:
            message = f"{each.backbone} at {each.image_size} px was not tried: {each.message}"
            self._context.reporter.warning(Stage.CHOOSE, "candidate_left_out", message)
        return choice

    def _choose(self, stage: RunningStage, source_uri: str, manifest: DatasetManifest) -> BackboneChoice:
        context = self._context
        built = self._wait(stage)
        sample = probe_sample.sample(manifest, self._spec.seed)
        trunks = list({trunk.trunk_id: trunk for _, trunk in built}.values())
        stages.compute_features(context, stage, source_uri, trunks, [(image, (0,)) for image in sample.images])
        shared = ray.put(sample)

        def submit(trunk: TrunkManifest, place: Place) -> "ray.ObjectRef[Done[ProbeScore]]":
            task = tasks.probe_task.options(label_selector=place.selector())
            return task.remote(context.bucket_uri, trunk, shared, self._spec)

        scores: dict[str, ProbeScore] = {}
        for trunk, done in dispatch.run_bounded(submit, trunks, context.parallelism, context.capacity, Stage.CHOOSE):
            stage.spans.append(done.span)
            scores[trunk.trunk_id] = done.result
        scored = [
            Scored(trunk.backbone, pending.recipe.weights, trunk.image_size, trunk.feature_dim, scores[trunk.trunk_id])
            for pending, trunk in built
        ]
        choice = backbone_rule.choose(
            scored, self._left_out, class_count=len(sample.labels), fold_count=sample.fold_count
        )
        with stage.working():
            return self._write(choice)

    def _wait(self, stage: RunningStage) -> list[tuple[stages.PendingTrunk, TrunkManifest]]:
        """The trunks of the candidates that can be had, at least one."""
        built: list[tuple[stages.PendingTrunk, TrunkManifest]] = []
        for candidate, pending in self._pending:
            try:
                built.append((pending, pending.wait(Stage.CHOOSE)))
            except Exception as error:
                cause = unwrap(error)
                if not isinstance(cause, WeightsUnusable):
                    raise
                self._leave_out(candidate, cause)
            stage.spans += pending.spans
        if not built:
            why = "; ".join(f"{each.backbone}: {each.message}" for each in self._left_out)
            raise WeightsUnusable(f"the weights of none of the {len(self._left_out)} candidates can be had: {why}")
        return built

    def _leave_out(self, candidate: BackboneCandidate, error: WeightsUnusable) -> None:
        self._left_out.append(
            LeftOutBackbone(
                backbone=candidate.backbone,
                weights=candidate.resolved_weights(),
                image_size=candidate.resolved_image_size(),
                message=error.message,
            )
        )

    def _write(self, choice: BackboneChoice) -> BackboneChoice:
        """The choice as it stands in the bucket: one that was there already is kept. Raises `Fenced`."""
        store, job_id = self._context.store, self._context.record.job_id
        check_fence(store, job_id, self._context.attempt)
        data = choice.model_dump_json().encode()
        key = names.job_backbone_choice(job_id)
        if store.put(key, data, if_absent=True) is not None:
            return choice
        return BackboneChoice.model_validate_json(store.get(key))


def find_choice(store: ObjectStore, job_id: JobId) -> BackboneChoice | None:
    """What an earlier attempt of the job chose, or None."""
    try:
        return BackboneChoice.model_validate_json(store.get(names.job_backbone_choice(job_id)))
    except NotFound:
        return None
