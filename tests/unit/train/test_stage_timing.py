"""What a stage reports of itself: when it ran, how much of that was work, and the trunk that it works with."""

from datetime import timedelta
from pathlib import Path

import pytest

from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.context import AttemptContext, running
from ray_cluster.train.dispatch import Parallelism
from ray_cluster.train.reporter import Reporter
from ray_cluster.train.work import Span
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.ids import JobId, TrunkId
from services.contracts.jobs import JobKind, JobRecord, ProgressRecord, Stage, StageTiming
from services.contracts.resources import Resources
from services.runtime.objects import open_store

JOB = JobId("job_1")
TRUNK = TrunkId("ab" * 32)


@pytest.fixture
def context(tmp_path: Path) -> AttemptContext:
    store = open_store(tmp_path.as_uri())
    record = JobRecord(job_id=JOB, kind=JobKind.TRAIN, model_name="m", created_at=utc_now(), spec=None, source_uri=None)
    reporter = Reporter(store, JOB, 1)
    capacity, parallelism = CapacityWatch(Resources(), reporter), Parallelism(1)
    return AttemptContext(tmp_path.as_uri(), store, record, 1, reporter, capacity=capacity, parallelism=parallelism)


def reports(context: AttemptContext) -> list[ProgressRecord]:
    prefix = names.attempt_progress_prefix(JOB, 1)
    return [ProgressRecord.model_validate_json(context.store.get(info.key)) for info in context.store.list(prefix)]


def timings(context: AttemptContext) -> list[StageTiming]:
    return [StageTiming.model_validate(report.data) for report in reports(context)]


def test_a_stage_tells_its_work_once_it_has_ended(context: AttemptContext) -> None:
    with running(context, Stage.PREFLIGHT) as stage:
        began_s = stage.timing.started_at.timestamp()
        stage.spans.append(Span(began_s - 60, began_s + 60))  # a task that another stage began, and that still runs
    begun, ended = timings(context)
    assert (begun.finished_at, begun.compute_s) == (None, None)
    assert ended.finished_at is not None
    assert ended.compute_s is not None
    took = ended.finished_at - ended.started_at
    assert timedelta(seconds=ended.compute_s) == pytest.approx(took, abs=timedelta(milliseconds=1))


def test_a_stage_that_only_waited_did_no_work(context: AttemptContext) -> None:
    with running(context, Stage.FIT):
        pass
    assert [timing.compute_s for timing in timings(context)] == [None, 0.0]


def test_a_trunk_is_reported_as_soon_as_it_is_there_and_stays(context: AttemptContext) -> None:
    with running(context, Stage.FEATURES) as stage:
        stage.found_trunk(TRUNK)
        assert [timing.trunk_id for timing in timings(context)] == [None, TRUNK]
    assert [report.message for report in reports(context)] == [
        "features: started",
        "features: on trunk abababababababab",
        "features: done",
    ]
    assert timings(context)[-1].trunk_id == TRUNK


def test_a_stage_that_fails_does_not_end(context: AttemptContext) -> None:
    with pytest.raises(RuntimeError, match="lost"), running(context, Stage.FEATURES):
        raise RuntimeError("lost")
    assert [timing.finished_at for timing in timings(context)] == [None]
