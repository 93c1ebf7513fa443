"""What `/metrics` says of jobs."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY

from services.contracts import names
from services.contracts.ids import DatasetId, JobId
from services.contracts.jobs import (
    CapacityWait,
    JobEventType,
    JobKind,
    JobRecord,
    JobState,
    Progress,
    ProgressRecord,
    Stage,
    StageTiming,
    TrainingJobSpec,
)
from services.runtime.database.tables import JobRow
from services.runtime.objects import open_store
from services.training.jobs.queries import new_row
from services.training.reconciler import measures
from services.training.reconciler.measures import CheckpointAge, checkpoint_age, images_done, longest_waits
from services.training.reconciler.policy import Retry

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)


def ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def job(
    state: JobState, *, number: int = 1, attempt: int = 1, created_s: float = 1000, interval_s: float = 30
) -> JobRow:
    spec = TrainingJobSpec(dataset_id=DatasetId("ds_1"), checkpoint_interval_s=interval_s)
    record = JobRecord(
        job_id=JobId(f"job_{number:024x}"),
        kind=JobKind.TRAIN,
        model_name="m",
        created_at=ago(created_s),
        spec=spec,
        source_uri="s3://b/x",
    )
    row = new_row(record)
    row.state, row.attempt = state.value, attempt
    return row


def trains(row: JobRow, since_s: float, stage: Stage = Stage.FIT) -> JobRow:
    timing = StageTiming(stage=stage, attempt=row.attempt, started_at=ago(since_s), finished_at=None)
    row.stages = [timing.model_dump(mode="json")]
    return row


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_the_longest_wait_is_that_before_the_first_attempt_or_for_a_machine() -> None:
    told = job(JobState.WAITING_FOR_CAPACITY)
    told.waiting = CapacityWait(asked="1 CPU", since=ago(70), message="none", on_demand_at=None).model_dump(mode="json")
    untold = job(JobState.WAITING_FOR_CAPACITY)
    untold.submitted_at = ago(50)
    queued = [job(JobState.QUEUED, attempt=0, created_s=20), job(JobState.QUEUED, attempt=2, created_s=900)]
    assert longest_waits([told, untold, *queued], NOW) == {JobState.WAITING_FOR_CAPACITY: 70, JobState.QUEUED: 20}
    assert set(longest_waits([job(JobState.TRAINING)], NOW).values()) == {0}


def test_the_age_is_of_the_job_whose_checkpoint_is_oldest_and_counts_from_the_stages_begin() -> None:
    saved = {JobId(f"job_{1:024x}"): ago(40), JobId(f"job_{2:024x}"): ago(500)}
    rows = [
        trains(job(JobState.TRAINING, number=1, interval_s=10), 300),
        trains(job(JobState.TRAINING, number=2, interval_s=60), 90, Stage.FINE_TUNE),  # saved by an earlier attempt
        trains(job(JobState.TRAINING, number=3, interval_s=60), 30),
        trains(job(JobState.WAITING_FOR_CAPACITY, number=4), 9000),
        job(JobState.PREPARING, number=5),
    ]
    assert checkpoint_age(rows, saved.get, NOW) == CheckpointAge(seconds=90, intervals=4)
    assert checkpoint_age(rows[3:], lambda _: None, NOW) == CheckpointAge()


def test_a_checkpoint_counts_once_its_manifest_is_there(tmp_path: Path) -> None:
    store, job_id = open_store(tmp_path.as_uri()), JobId("job_" + "1" * 24)
    store.put(f"{names.checkpoint_prefix(job_id, 1, 1, 5)}state.safetensors", b"x")
    assert measures.newest_checkpoint(store, job_id) is None
    store.put(names.checkpoint_manifest(job_id, 1, 1, 5), b"{}")
    written = measures.newest_checkpoint(store, job_id)
    assert written is not None
    assert abs((datetime.now(UTC) - written).total_seconds()) < 60


def report(stage: Stage, done: int, kind: JobEventType = JobEventType.PROGRESS, unit: str = "images") -> ProgressRecord:
    data = Progress(stage=stage, done=done, total=100, unit=unit).model_dump(mode="json")
    return ProgressRecord(seq=0, at=NOW, attempt=1, type=kind, stage=stage, message="", data=data)


@pytest.mark.parametrize(
    ("before", "reports", "done"),
    [
        (None, [report(Stage.PREFLIGHT, 40), report(Stage.PREFLIGHT, 60)], {Stage.PREFLIGHT: 20}),  # 40 were known
        (
            Progress(stage=Stage.PREFLIGHT, done=60, total=100, unit="images"),
            [report(Stage.PREFLIGHT, 100), report(Stage.FEATURES, 0), report(Stage.FEATURES, 32)],
            {Stage.PREFLIGHT: 40, Stage.FEATURES: 32},
        ),
        (None, [report(Stage.FIT, 1, unit="epochs"), report(Stage.FIT, 9, unit="epochs")], {}),
        (None, [report(Stage.FEATURES, 1, JobEventType.RECOVERY)], {}),
    ],
)
def test_images_are_counted_beyond_what_was_told_before(
    before: Progress | None, reports: list[ProgressRecord], done: dict[Stage, int]
) -> None:
    assert images_done(before, reports) == done


@pytest.fixture
def leading() -> Iterator[None]:
    measures.leads()
    yield
    measures.leads_no_more()


def test_who_leads_shows_every_state_and_who_does_not_shows_none(leading: None) -> None:
    measures.show([job(JobState.TRAINING), job(JobState.TRAINING)], CheckpointAge(8, 2), NOW)
    measures.show_troubles({"cluster": "away", "job_1": "odd", "job_2": "odd"})
    assert sample("rekindle_jobs", kind="train", state="training") == 2
    assert sample("rekindle_jobs", kind="predict", state="queued") == 0
    assert sample("rekindle_checkpoint_age_intervals") == 2
    assert [sample("rekindle_reconciler_troubles", about=about) for about in ("cluster", "serve", "job")] == [1, 0, 2]
    measures.leads_no_more()
    assert sample("rekindle_jobs", kind="train", state="training") is None
    assert (sample("rekindle_reconciler_leading"), sample("rekindle_checkpoint_age_intervals")) == (0, 0)


@pytest.mark.parametrize(
    ("unknown", "state", "cause"),
    [
        (1, JobState.QUEUED, "unknown"),
        (0, JobState.QUEUED, "infrastructure"),
        (0, JobState.WAITING_FOR_CAPACITY, "capacity"),
    ],
)
def test_why_an_attempt_is_repeated(unknown: int, state: JobState, cause: str) -> None:
    retry = Retry(state=state, at=NOW, reason="", unknown_failures=unknown, infrastructure_failures=1, deaths=0)
    before = sample("rekindle_job_attempts_repeated_total", kind="train", cause=cause) or 0
    measures.count_action(job(JobState.TRAINING), retry)
    assert sample("rekindle_job_attempts_repeated_total", kind="train", cause=cause) == before + 1
