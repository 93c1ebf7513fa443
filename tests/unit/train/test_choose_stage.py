"""The choose stage where no cluster is needed: a choice that is known, and candidates that cannot be had."""

from pathlib import Path

import pytest
from ray.exceptions import RayTaskError

from ray_cluster.train import stages
from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.choose_stage import run_choose
from ray_cluster.train.context import AttemptContext
from ray_cluster.train.dispatch import Parallelism
from ray_cluster.train.job_engine import PendingEngine
from ray_cluster.train.reporter import Reporter
from ray_cluster.train.work import Span
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.datasets import DatasetManifest, PreflightReport
from services.contracts.errors import ObjectStoreUnavailable, WeightsUnusable
from services.contracts.ids import DatasetId, JobId
from services.contracts.jobs import (
    BackboneChoice,
    JobEventType,
    JobKind,
    JobRecord,
    ProgressRecord,
    Stage,
    StageTiming,
    TrainingJobSpec,
)
from services.contracts.resources import Resources
from services.runtime.objects import open_store
from tests.servers.choices import CHOICE

JOB = JobId("job_1")
REPORT = PreflightReport(image_count=0, classes=[], quarantined=[], duplicate_count=0, warnings=[], ignored_count=0)
MANIFEST = DatasetManifest(dataset_id=DatasetId("ds_1"), fingerprint="", labels=[], images=[], report=REPORT)


def spec(folder: Path) -> TrainingJobSpec:
    """Its candidates' weights are not there."""
    candidates = [
        {"backbone": backbone, "weights": {"uri": (folder / f"{backbone}.h5").as_uri()}}
        for backbone in ("rekindle_tiny", "resnet50")
    ]
    return TrainingJobSpec.model_validate({"dataset_id": "ds_1", "backbone": "auto", "candidates": candidates})


@pytest.fixture
def context(tmp_path: Path) -> AttemptContext:
    (tmp_path / "bucket").mkdir()
    store = open_store((tmp_path / "bucket").as_uri())
    record = JobRecord(
        job_id=JOB, kind=JobKind.TRAIN, model_name="m", created_at=utc_now(), spec=spec(tmp_path), source_uri=None
    )
    reporter = Reporter(store, JOB, 1)
    return AttemptContext(
        store.uri, store, record, 1, reporter, capacity=CapacityWatch(Resources(), reporter), parallelism=Parallelism(1)
    )


def told(context: AttemptContext) -> list[ProgressRecord]:
    prefix = names.attempt_progress_prefix(JOB, 1)
    return [ProgressRecord.model_validate_json(context.store.get(info.key)) for info in context.store.list(prefix)]


def test_a_choice_that_was_made_is_kept_and_told_again(context: AttemptContext, tmp_path: Path) -> None:
    context.store.put(names.job_backbone_choice(JOB), CHOICE.model_dump_json().encode())
    asked = spec(tmp_path)
    assert chosen(context, asked) == CHOICE
    *_, ended, warned = told(context)
    timing = StageTiming.model_validate(ended.data)
    assert (timing.skipped, timing.backbone_choice) == (True, CHOICE)
    assert warned.type is JobEventType.WARNING
    assert warned.message == "mobilenet_v2 at 224 px was not tried: there is no network"
    taken = asked.with_backbone(CHOICE.chosen)
    assert (taken.backbone, taken.weights, taken.image_size) == ("rekindle_tiny", "bundled", 32)
    assert TrainingJobSpec.model_validate(taken.model_dump()) == taken


def chosen(context: AttemptContext, asked: TrainingJobSpec) -> BackboneChoice:
    return run_choose(context, asked, "file:///nowhere", MANIFEST, PendingEngine(context, Stage.CHOOSE))


class TaskFails:
    """A trunk that is being built, in a task that fails."""

    def __init__(self, error: Exception) -> None:
        self._error = RayTaskError("build", "traceback", error).as_instanceof_cause()
        self.spans: list[Span] = []

    def wait(self, stage: Stage) -> None:
        assert stage is Stage.CHOOSE
        raise self._error


def test_where_no_candidate_can_be_had_the_job_says_why_of_each(
    context: AttemptContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(WeightsUnusable, match=r"none of the 2 candidates .* rekindle_tiny: .*; resnet50: there is no"):
        chosen(context, spec(tmp_path))
    monkeypatch.setattr(stages, "PendingTrunk", lambda *_: TaskFails(WeightsUnusable("the file does not fit")))
    with pytest.raises(WeightsUnusable, match="resnet50: the file does not fit"):
        chosen(context, spec(tmp_path))
    assert context.store.head(names.job_backbone_choice(JOB)) is None


def test_a_store_that_does_not_answer_leaves_no_candidate_out(
    context: AttemptContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "PendingTrunk", lambda *_: TaskFails(ObjectStoreUnavailable("no answer")))
    with pytest.raises(ObjectStoreUnavailable):
        chosen(context, spec(tmp_path))
