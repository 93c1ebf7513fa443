"""What `/metrics` says of jobs. The leading gateway counts; where another leads, the gauges are empty or 0."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from prometheus_client import Counter, Gauge
from pydantic import ValidationError

from services.contracts import names
from services.contracts.ids import JobId
from services.contracts.jobs import (
    CapacityWait,
    JobEventType,
    JobKind,
    JobState,
    Progress,
    ProgressRecord,
    Stage,
    StageTiming,
)
from services.runtime.database.tables import JobRow
from services.runtime.objects import ObjectStore
from services.training.reconciler.policy import Action, Cancel, Fail, Retry, Succeed

INTERVAL_S = 10.0
"""Seconds between two measurements of the gauges."""
IMAGES = "images"
_MANIFEST = "/manifest.json"
_UNFINISHED = [state for state in JobState if not state.is_terminal]
_WAITING = (JobState.QUEUED, JobState.WAITING_FOR_CAPACITY)

JOBS = Gauge("rekindle_jobs", "Jobs that have not ended.", ["kind", "state"])
LONGEST_WAIT = Gauge(
    "rekindle_job_longest_wait_seconds",
    "How long that job has waited which waits longest: queued before its first attempt, or for a machine.",
    ["state"],
)
CHECKPOINT_AGE = Gauge(
    "rekindle_checkpoint_age_seconds",
    "Of the jobs that train: the longest time since a job's newest checkpoint, or since its training began.",
)
CHECKPOINT_OVERDUE = Gauge(
    "rekindle_checkpoint_age_intervals", "The same in units of the job's own checkpoint interval; the largest."
)
LEADING = Gauge("rekindle_reconciler_leading", "1 where this gateway leads, 0 elsewhere.")
LAST_LOOK = Gauge(
    "rekindle_reconciler_last_look_timestamp_seconds", "When this gateway, leading, last looked at all jobs; Unix time."
)
TROUBLES = Gauge(
    "rekindle_reconciler_troubles",
    "What the leading gateway cannot do at the moment: cluster, serve, jobs, lease, copies, garbage, measures; for "
    "`job` how many jobs.",
    ["about"],
)
ATTEMPTS = Counter("rekindle_job_attempts_total", "Attempts that were begun.", ["kind"])
REPEATED = Counter(
    "rekindle_job_attempts_repeated_total",
    "Attempts that ended without a result and are followed by another. cause: infrastructure, capacity or unknown.",
    ["kind", "cause"],
)
ENDED = Counter("rekindle_jobs_ended_total", "Jobs that ended.", ["kind", "state"])
RECOVERIES = Counter("rekindle_job_recoveries_total", "Times that training went on in another process.")
IMAGES_DONE = Counter("rekindle_job_images_total", "Images that jobs have worked off, by stage.", ["stage"])

GENERAL_TROUBLES = frozenset({"lease", "jobs", "serve", "copies", "garbage", "cluster", "measures", "spare"})
"""What a trouble may be about besides a single job."""


# --- what is looked at every few seconds ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CheckpointAge:
    """How old the newest checkpoint is, of the job for which it is the oldest."""

    seconds: float = 0.0
    intervals: float = 0.0
    """In units of the job's own interval; of the job for which that is the most."""


def longest_waits(rows: Iterable[JobRow], now: datetime) -> dict[JobState, float]:
    """Seconds, for each state in which jobs wait; 0 where none does. A pause between attempts is no wait."""
    waits: dict[JobState, float] = dict.fromkeys(_WAITING, 0.0)
    for row in rows:
        state = JobState(row.state)
        since = _waits_since(row)
        if state in waits and since is not None:
            waits[state] = max(waits[state], (now - since).total_seconds())
    return waits


def _waits_since(row: JobRow) -> datetime | None:
    if row.state == JobState.QUEUED.value:
        return row.created_at if row.attempt == 0 else None
    if row.waiting is not None:
        return CapacityWait.model_validate(row.waiting).since
    return row.submitted_at  # Ray has not started the attempt itself


def training_since(row: JobRow) -> datetime | None:
    """When the stage began that the job is in, where that is one with checkpoints; None otherwise."""
    if row.state != JobState.TRAINING.value or not row.stages:
        return None
    timing = StageTiming.model_validate(row.stages[-1])
    trains = timing.stage in (Stage.FIT, Stage.FINE_TUNE) and timing.finished_at is None
    return timing.started_at if trains and timing.attempt == row.attempt else None


def checkpoint_age(rows: Iterable[JobRow], newest: Callable[[JobId], datetime | None], now: datetime) -> CheckpointAge:
    """`newest` says when a job's newest checkpoint was written."""
    seconds = intervals = 0.0
    for row in rows:
        since = training_since(row)
        if since is None:
            continue
        written = newest(JobId(row.id))
        age_s = (now - (since if written is None else max(since, written))).total_seconds()
        seconds = max(seconds, age_s)
        intervals = max(intervals, age_s / _checkpoint_interval_s(row))
    return CheckpointAge(seconds, intervals)


def _checkpoint_interval_s(row: JobRow) -> float:
    return float((row.spec or {}).get("checkpoint_interval_s", 30.0))


def newest_checkpoint(store: ObjectStore, job_id: JobId) -> datetime | None:
    """When the job's newest whole checkpoint was written; None before the first. Raises `ObjectStoreUnavailable`."""
    found = (info for info in store.list(names.checkpoints_prefix(job_id)) if info.key.endswith(_MANIFEST))
    return max((info.modified_at for info in found), default=None)


def show(rows: Sequence[JobRow], age: CheckpointAge, now: datetime) -> None:
    """The jobs as they are now."""
    counts = Tally((row.kind, row.state) for row in rows)
    for kind in JobKind:
        for state in _UNFINISHED:
            JOBS.labels(kind.value, state.value).set(counts[kind.value, state.value])
    for state, wait_s in longest_waits(rows, now).items():
        LONGEST_WAIT.labels(state.value).set(wait_s)
    CHECKPOINT_AGE.set(age.seconds)
    CHECKPOINT_OVERDUE.set(age.intervals)


def show_troubles(troubles: Mapping[str, str]) -> None:
    """`troubles` by what they are about, which is one of `GENERAL_TROUBLES` or a job's id."""
    for about in GENERAL_TROUBLES:
        TROUBLES.labels(about).set(about in troubles)
    TROUBLES.labels("job").set(len(troubles.keys() - GENERAL_TROUBLES))


def looked() -> None:
    """All jobs were looked at."""
    LAST_LOOK.set(time.time())


def leads() -> None:
    """This gateway leads from now on."""
    LEADING.set(1)


def leads_no_more() -> None:
    """Another gateway tells of the jobs from now on."""
    for gauge in (JOBS, LONGEST_WAIT, TROUBLES):
        gauge.clear()
    for gauge in (LEADING, LAST_LOOK, CHECKPOINT_AGE, CHECKPOINT_OVERDUE):
        gauge.set(0)


# --- what is counted when it happens ----------------------------------------------------------------------------------


def count_attempt(row: JobRow) -> None:
    """An attempt of the job was begun."""
    ATTEMPTS.labels(row.kind).inc()


def count_action(row: JobRow, action: Action) -> None:
    """Something was done about a job; `row` is as it was before."""
    match action:
        case Retry():
            REPEATED.labels(row.kind, _cause(row, action)).inc()
        case Succeed():
            ENDED.labels(row.kind, JobState.SUCCEEDED.value).inc()
        case Fail():
            ENDED.labels(row.kind, JobState.FAILED.value).inc()
        case Cancel():
            ENDED.labels(row.kind, JobState.CANCELLED.value).inc()
        case _:
            pass


def _cause(row: JobRow, action: Retry) -> str:
    if action.unknown_failures > row.unknown_failures:
        return "unknown"
    return "capacity" if action.state is JobState.WAITING_FOR_CAPACITY else "infrastructure"


def count_reports(row: JobRow, reports: Iterable[ProgressRecord]) -> None:
    """Reports of the newest attempt were taken over; `row` is as it was before."""
    reports = list(reports)
    RECOVERIES.inc(sum(report.type is JobEventType.RECOVERY for report in reports))
    before = None if row.progress is None else Progress.model_validate(row.progress)
    for stage, count in images_done(before, reports).items():
        IMAGES_DONE.labels(stage.value).inc(count)


def images_done(before: Progress | None, reports: Iterable[ProgressRecord]) -> dict[Stage, int]:
    """Images by stage that these reports tell of, beyond `before`. A stage's first report says where it began."""
    done: Tally[Stage] = Tally()
    for report in reports:
        if report.type is not JobEventType.PROGRESS:
            continue
        try:
            progress = Progress.model_validate(report.data)
        except ValidationError:  # of a newer release
            continue
        if progress.unit == IMAGES and before is not None and before.stage is progress.stage:
            done[progress.stage] += max(0, progress.done - before.done)
        before = progress
    return dict(done)
