"""Takes over what an attempt reports into the job: pure, so that the same records always tell the same story."""

from dataclasses import dataclass, replace
from datetime import datetime

from pydantic import JsonValue, ValidationError

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

MARK_STEPS = 1_000_000_000
"""Room within one stage in a progress mark; more than the images or epochs of any job."""

_STAGE_ORDER = {stage: order for order, stage in enumerate(Stage)}


@dataclass(frozen=True, slots=True)
class EventDraft:
    """A `JobEvent` before it has its `seq`."""

    type: JobEventType
    at: datetime
    attempt: int
    state: JobState
    message: str
    data: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The part of a job that an attempt's reports change."""

    state: JobState
    progress: Progress | None = None
    waiting: CapacityWait | None = None
    """Set while the attempt says that it waits for a machine."""
    metrics: EpochMetrics | None = None
    stages: tuple[StageTiming, ...] = ()
    warnings: tuple[str, ...] = ()
    mark: int = -1
    """How far any attempt got: stage, then images or epochs within it."""


def fold(job: JobProgress, record: ProgressRecord) -> tuple[JobProgress, list[EventDraft]]:
    """The job after one record, and the events that tell of it.

    A record whose data this release does not understand still becomes an event, and changes nothing else: a newer
    cluster beside an older gateway must not stop the job.
    """
    events: list[EventDraft] = []
    job = replace(job, waiting=_waiting_after(job, record))
    state = record.stage.job_state if job.waiting is None else JobState.WAITING_FOR_CAPACITY
    if not job.state.is_terminal and job.state is not JobState.CANCELLING and state is not job.state:
        events.append(state_event(job.state, state, record.at, record.attempt, record.message))
        job = replace(job, state=state)
    events.append(
        EventDraft(
            type=record.type,
            at=record.at,
            attempt=record.attempt,
            state=job.state,
            message=record.message,
            data=record.data,
        )
    )
    try:
        return _changed(job, record), events
    except ValidationError:
        return job, events


def _waiting_after(job: JobProgress, record: ProgressRecord) -> CapacityWait | None:
    """Whatever tells that the work goes on ends a wait, too: the record of its end may have been lost."""
    match record.type:
        case JobEventType.CAPACITY:
            try:
                wait = CapacityWait.model_validate(record.data)
            except ValidationError:
                return job.waiting
            return None if wait.over else wait
        case JobEventType.WARNING | JobEventType.STATE:
            return job.waiting
        case JobEventType.STAGE | JobEventType.PROGRESS | JobEventType.EPOCH | JobEventType.RECOVERY:
            return None


def state_event(before: JobState, after: JobState, at: datetime, attempt: int, reason: str) -> EventDraft:
    """The event of a transition."""
    data: dict[str, JsonValue] = {"from": before.value, "to": after.value}
    return EventDraft(type=JobEventType.STATE, at=at, attempt=attempt, state=after, message=reason, data=data)


def _changed(job: JobProgress, record: ProgressRecord) -> JobProgress:
    match record.type:
        case JobEventType.STAGE:
            timing = StageTiming.model_validate(record.data)
            done = MARK_STEPS - 1 if timing.finished_at is not None else 0
            return replace(
                job,
                stages=_with_timing(job.stages, timing),
                progress=job.progress if timing.finished_at is not None else None,
                mark=max(job.mark, progress_mark(timing.stage, done)),
            )
        case JobEventType.PROGRESS:
            progress = Progress.model_validate(record.data)
            return replace(job, progress=progress, mark=max(job.mark, progress_mark(progress.stage, progress.done)))
        case JobEventType.EPOCH:
            metrics = EpochMetrics.model_validate(record.data)
            progress = Progress(stage=record.stage, done=metrics.epoch, total=metrics.epochs, unit="epochs")
            return replace(
                job,
                metrics=metrics,
                progress=progress,
                mark=max(job.mark, progress_mark(record.stage, metrics.epoch)),
            )
        case JobEventType.WARNING:
            known = record.message in job.warnings
            return job if known else replace(job, warnings=(*job.warnings, record.message))
        case JobEventType.STATE | JobEventType.RECOVERY | JobEventType.CAPACITY:
            return job


def progress_mark(stage: Stage, done: int) -> int:
    """A number that grows as a job gets further, across attempts."""
    return _STAGE_ORDER[stage] * MARK_STEPS + min(done, MARK_STEPS - 1)


def _with_timing(stages: tuple[StageTiming, ...], timing: StageTiming) -> tuple[StageTiming, ...]:
    """The end of a stage replaces its beginning; otherwise stages stand in the order they began."""
    same = [(each.stage, each.attempt) == (timing.stage, timing.attempt) for each in stages]
    if True in same:
        return tuple(timing if matches else each for each, matches in zip(stages, same, strict=True))
    return (*stages, timing)
