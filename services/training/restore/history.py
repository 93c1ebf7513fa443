"""A job's row and events out of what it left in the bucket. Pure, so that the same bucket always gives the same job."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from services.contracts.ids import submission_id
from services.contracts.jobs import FailureClass, JobOutcome, JobState
from services.runtime.database.tables import JobRow
from services.training.jobs import queries
from services.training.reconciler.policy import Cancel
from services.training.reconciler.progress import EventDraft, JobProgress, fold, state_event
from services.training.reconciler.transitions import write_progress
from services.training.restore.reading import FoundAttempt, FoundJob

RESTORED = "The database was restored from the bucket; the job goes on."


@dataclass(frozen=True, slots=True)
class RebuiltJob:
    """A job as it goes into the database; the events have no `seq` yet."""

    row: JobRow
    events: Sequence[EventDraft]


@dataclass(slots=True)
class _Story:
    """A job's history, told from its beginning."""

    progress: JobProgress
    events: list[EventDraft]
    unknown_failures: int = 0
    infrastructure_failures: int = 0
    seq: int = -1
    """Of the last report of the newest attempt."""

    def move(self, state: JobState, at: datetime, attempt: int, reason: str) -> None:
        self.events.append(state_event(self.progress.state, state, at, attempt, reason))
        waiting = self.progress.waiting if state is JobState.WAITING_FOR_CAPACITY else None
        self.progress = replace(self.progress, state=state, waiting=waiting)

    def tell(self, attempt: FoundAttempt) -> None:
        mark = self.progress.mark
        for record in attempt.records:
            self.progress, more = fold(self.progress, record)
            self.events += more
            self.seq = record.seq
        if self.progress.mark > mark:
            self.infrastructure_failures = 0

    def count(self, failure_class: FailureClass) -> None:
        if failure_class is FailureClass.UNKNOWN:
            self.unknown_failures += 1
        else:
            self.infrastructure_failures += 1


def rebuild(found: FoundJob, now: datetime) -> RebuiltJob:
    """The job as it was, as far as the bucket knows.

    Of an unfinished job the newest attempt counts as submitted: where the cluster still runs it, it goes on unharmed;
    where the cluster knows nothing of it, it is lost and one with a greater number follows.
    """
    outcome = found.outcome
    newest = found.newest_attempt if outcome is None else outcome.attempt
    row = queries.new_row(found.record)
    accepted = state_event(JobState.QUEUED, JobState.QUEUED, row.created_at, 0, row.reason)
    story = _Story(JobProgress(state=JobState.QUEUED), [accepted])
    for number in range(1, newest + 1):
        _tell_attempt(story, number, found.attempts.get(number), is_newest=number == newest)
    row.attempt = newest
    row.submission_id = _ray_job_of(found, newest) if newest else None
    row.progress_seq = story.seq
    row.unknown_failures = story.unknown_failures
    row.infrastructure_failures = story.infrastructure_failures
    if outcome is not None:
        _end(row, story, outcome)
    else:
        _go_on(row, story, found, now)
    write_progress(row, story.progress)
    row.updated_at = story.events[-1].at
    row.reason = story.events[-1].message
    return RebuiltJob(row, story.events)


def _ray_job_of(found: FoundJob, number: int) -> str:
    attempt = found.attempts.get(number)
    own = submission_id(found.record.job_id, number)
    return own if attempt is None or attempt.driver is None else attempt.driver.submission_id


def _tell_attempt(story: _Story, number: int, attempt: FoundAttempt | None, *, is_newest: bool) -> None:
    """Nobody wrote down when an attempt was submitted; its first trace is the best that there is."""
    traces = [] if attempt is None else [record.at for record in attempt.records[:1]]
    if attempt is not None and attempt.outcome is not None:
        traces.append(attempt.outcome.finished_at)
    story.progress = replace(story.progress, progress=None)
    story.seq = -1
    begun_at = traces[0] if traces else story.events[-1].at
    story.move(JobState.QUEUED, begun_at, number, f"Attempt {number} is submitted to the Ray cluster.")
    if attempt is None:
        return
    story.tell(attempt)
    failure = None if attempt.outcome is None else attempt.outcome.failure
    # The newest attempt's own end is for the reconciler to judge, or stands in the job's outcome.
    if attempt.outcome is not None and failure is not None and not is_newest:
        story.count(failure.failure_class)
        ended = f"Attempt {number} ended: {failure.message}"
        story.move(JobState.QUEUED, attempt.outcome.finished_at, number, ended)


def _end(row: JobRow, story: _Story, outcome: JobOutcome) -> None:
    row.finished_at = outcome.finished_at
    row.cancel_requested = outcome.state is JobState.CANCELLED
    reason = Cancel().reason
    if outcome.published is not None:
        row.result = outcome.published.model_dump(mode="json")
        reason = f"Published version {outcome.published.version} of model {outcome.published.model_name!r}."
    elif outcome.predicted is not None:
        row.result = outcome.predicted.model_dump(mode="json")
        reason = outcome.predicted.sentence
    elif outcome.failure is not None:
        row.failure = outcome.failure.model_dump(mode="json")
        reason = outcome.failure.message
    story.move(outcome.state, outcome.finished_at, outcome.attempt, reason)


def _go_on(row: JobRow, story: _Story, found: FoundJob, now: datetime) -> None:
    row.submitted_at = now if row.attempt else None
    if found.cancellation is not None:
        row.cancel_requested = True
        requested_at = found.cancellation.requested_at
        story.move(JobState.CANCELLING, requested_at, row.attempt, "Cancellation was requested.")
    story.move(story.progress.state, now, row.attempt, RESTORED)
