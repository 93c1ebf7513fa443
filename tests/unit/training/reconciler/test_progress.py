"""An attempt's reports become its job's story."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from services.contracts.jobs import (
    CapacityWait,
    EpochMetrics,
    JobEventType,
    JobState,
    Progress,
    ProgressRecord,
    Stage,
    StageTiming,
)
from services.training.reconciler.progress import JobProgress, fold, progress_mark

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
PREPARING = JobProgress(state=JobState.PREPARING)
WAIT = CapacityWait(asked="0.9 CPU on a spot node", since=NOW, message="no spot node", on_demand_at=None)
OVER = WAIT.model_copy(update={"over": True})


def record(kind: JobEventType, stage: Stage, data: BaseModel | dict[str, object], message: str = "…") -> ProgressRecord:
    shown = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
    return ProgressRecord(seq=0, at=NOW, attempt=1, type=kind, stage=stage, message=message, data=shown)


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=number, epochs=10, train_loss=1.0, train_accuracy=0.5, validation_loss=None, validation_accuracy=None
    )


def timing(stage: Stage, *, minutes: int | None = None, attempt: int = 1) -> StageTiming:
    finished_at = None if minutes is None else NOW + timedelta(minutes=minutes)
    return StageTiming(stage=stage, attempt=attempt, started_at=NOW, finished_at=finished_at)


def test_a_stage_of_another_state_moves_the_job_and_says_so_first() -> None:
    job, events = fold(PREPARING, record(JobEventType.STAGE, Stage.FIT, timing(Stage.FIT), "fit: started"))
    assert job.state is JobState.TRAINING
    assert [event.type for event in events] == [JobEventType.STATE, JobEventType.STAGE]
    assert events[0].data == {"from": "preparing", "to": "training"}
    assert events[0].message == "fit: started"


def test_a_stage_of_the_same_state_moves_nothing() -> None:
    job, events = fold(PREPARING, record(JobEventType.STAGE, Stage.FEATURES, timing(Stage.FEATURES)))
    assert job.state is JobState.PREPARING
    assert [event.type for event in events] == [JobEventType.STAGE]


def test_a_job_that_is_being_cancelled_stays_so_whatever_its_attempt_reports() -> None:
    cancelling = JobProgress(state=JobState.CANCELLING)
    job, events = fold(cancelling, record(JobEventType.EPOCH, Stage.FIT, epoch(3)))
    assert job.state is JobState.CANCELLING
    assert [event.state for event in events] == [JobState.CANCELLING]


def test_the_end_of_a_stage_replaces_its_beginning() -> None:
    job, _ = fold(PREPARING, record(JobEventType.STAGE, Stage.PREFLIGHT, timing(Stage.PREFLIGHT)))
    job, _ = fold(job, record(JobEventType.STAGE, Stage.PREFLIGHT, timing(Stage.PREFLIGHT, minutes=1)))
    job, _ = fold(job, record(JobEventType.STAGE, Stage.FEATURES, timing(Stage.FEATURES)))
    assert job.stages == (timing(Stage.PREFLIGHT, minutes=1), timing(Stage.FEATURES))


def test_stages_of_another_attempt_are_kept_beside_the_first() -> None:
    job, _ = fold(PREPARING, record(JobEventType.STAGE, Stage.PREFLIGHT, timing(Stage.PREFLIGHT)))
    job, _ = fold(job, record(JobEventType.STAGE, Stage.PREFLIGHT, timing(Stage.PREFLIGHT, attempt=2)))
    assert [each.attempt for each in job.stages] == [1, 2]


def test_an_epoch_is_both_the_newest_metrics_and_the_progress() -> None:
    job, _ = fold(PREPARING, record(JobEventType.EPOCH, Stage.FIT, epoch(3)))
    assert job.metrics == epoch(3)
    assert job.progress == Progress(stage=Stage.FIT, done=3, total=10, unit="epochs")


def test_the_same_warning_of_a_second_attempt_is_shown_once() -> None:
    warning = record(JobEventType.WARNING, Stage.PREFLIGHT, {"code": "few"}, "class 'a' has few images")
    job, _ = fold(PREPARING, warning)
    job, _ = fold(job, warning)
    assert job.warnings == ("class 'a' has few images",)


def test_data_of_another_release_becomes_an_event_and_harms_nothing() -> None:
    job, events = fold(PREPARING, record(JobEventType.PROGRESS, Stage.PREFLIGHT, {"new": "shape"}))
    assert job == PREPARING
    assert events[0].data == {"new": "shape"}


def waiting(stage: Stage) -> JobProgress:
    job, events = fold(PREPARING, record(JobEventType.CAPACITY, stage, WAIT, "Waits for a machine."))
    assert (job.state, job.waiting) == (JobState.WAITING_FOR_CAPACITY, WAIT)
    assert [(event.type, event.state) for event in events] == [
        (JobEventType.STATE, JobState.WAITING_FOR_CAPACITY),
        (JobEventType.CAPACITY, JobState.WAITING_FOR_CAPACITY),
    ]
    assert events[0].message == "Waits for a machine."
    return job


@pytest.mark.parametrize(("stage", "state"), [(stage, stage.job_state) for stage in Stage])
def test_a_wait_for_a_machine_is_a_state_until_it_is_over(stage: Stage, state: JobState) -> None:
    job, events = fold(waiting(stage), record(JobEventType.CAPACITY, stage, OVER))
    assert (job.state, job.waiting) == (state, None)
    assert [event.type for event in events] == [JobEventType.STATE, JobEventType.CAPACITY]


def test_what_ray_says_anew_changes_the_wait_and_not_the_state() -> None:
    more = WAIT.model_copy(update={"message": "no spot node; starting: spot"})
    job, events = fold(waiting(Stage.FIT), record(JobEventType.CAPACITY, Stage.FIT, more))
    assert (job.state, job.waiting) == (JobState.WAITING_FOR_CAPACITY, more)
    assert [event.type for event in events] == [JobEventType.CAPACITY]


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (JobEventType.STAGE, timing(Stage.FIT)),
        (JobEventType.PROGRESS, Progress(stage=Stage.FIT, done=1, total=2, unit="epochs")),
        (JobEventType.EPOCH, epoch(3)),
        (JobEventType.RECOVERY, {}),
    ],
)
def test_work_that_goes_on_ends_a_wait_whose_end_was_not_told(
    kind: JobEventType, data: BaseModel | dict[str, object]
) -> None:
    job, _ = fold(waiting(Stage.FIT), record(kind, Stage.FIT, data))
    assert (job.state, job.waiting) == (JobState.TRAINING, None)


@pytest.mark.parametrize(
    ("kind", "data"), [(JobEventType.WARNING, {"code": "slow"}), (JobEventType.CAPACITY, {"new": "shape"})]
)
def test_what_says_nothing_about_the_wait_leaves_it(kind: JobEventType, data: dict[str, object]) -> None:
    job, _ = fold(waiting(Stage.FIT), record(kind, Stage.FIT, data))
    assert (job.state, job.waiting) == (JobState.WAITING_FOR_CAPACITY, WAIT)


def test_a_job_that_is_being_cancelled_waits_for_no_machine() -> None:
    cancelling = JobProgress(state=JobState.CANCELLING)
    job, events = fold(cancelling, record(JobEventType.CAPACITY, Stage.FIT, WAIT))
    assert job.state is JobState.CANCELLING
    assert [event.type for event in events] == [JobEventType.CAPACITY]


def test_an_attempt_that_repeats_what_was_done_gets_no_further() -> None:
    job, _ = fold(PREPARING, record(JobEventType.EPOCH, Stage.FIT, epoch(7)))
    reached = job.mark
    for again in (
        record(JobEventType.STAGE, Stage.FEATURES, timing(Stage.FEATURES, minutes=1, attempt=2)),
        record(JobEventType.EPOCH, Stage.FIT, epoch(7)),
    ):
        job, _ = fold(job, again)
        assert job.mark == reached
    job, _ = fold(job, record(JobEventType.EPOCH, Stage.FIT, epoch(8)))
    assert job.mark > reached


def test_marks_grow_through_the_stages() -> None:
    marks = [progress_mark(stage, done) for stage in Stage for done in (0, 1, 10**12)]
    assert marks == sorted(set(marks))
