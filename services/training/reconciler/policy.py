"""What to do about a job, given what is wanted and what was seen. Pure: no clock, no network, no database.

The rules, in order of weight: an attempt's own account (its outcome in the bucket) beats what Ray says; unreachable is
not dead; one attempt at a time; only a person's mistake or repeated unexplained failure ends a job as failed.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from services.contracts.batch_predictions import BatchResult
from services.contracts.jobs import PROCESS_LOST, AttemptOutcome, Failure, FailureClass, JobState, PublishedModel
from services.training.ray_api import RayStatus

PENDING_GRACE = timedelta(seconds=10)
"""An attempt that Ray has not started after this long waits for capacity."""

SILENCE = timedelta(seconds=10)
"""A running attempt that has reported nothing for so long may be dead without Ray noticing: a Ray head that was
restarted shows its jobs as they were, and looks after none of them until it is given work."""

DEATHS_BEFORE_COUNTING = 5
"""From this death in a row without progress on, a process that dies counts as an unknown failure: its input may crash
it, or it may be out of memory, every time and for ever. Lost machines and clusters are no deaths."""

MAX_MESSAGE_CHARACTERS = 500

NOT_STARTED_ERRORS = frozenset(
    {
        "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        "JOB_SUPERVISOR_ACTOR_START_FAILURE",
        "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
        "JOB_SUPERVISOR_ACTOR_DIED",
        "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE",
        "RUNTIME_ENV_SETUP_FAILURE",
    }
)
"""Ray's error types for a driver that never ran, or whose node went away with Ray's own supervisor."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait before the next attempt."""

    initial_s: float = 2.0
    max_s: float = 120.0

    def delay(self, failures: int) -> timedelta:
        """The wait after `failures` failures in a row (1 or more): doubles each time up to the maximum."""
        return timedelta(seconds=min(self.max_s, self.initial_s * 2.0 ** min(failures - 1, 32)))


@dataclass(frozen=True, slots=True)
class JobView:
    """A job that has not ended, as the database has it."""

    state: JobState
    attempt: int
    """The newest attempt; 0 before the first."""
    submitted: bool
    """Whether the cluster is known to have taken the newest attempt."""
    cancel_requested: bool
    max_attempts: int
    waiting: str | None = None
    """What the newest attempt says that it waits for; null while it does not wait."""
    unknown_failures: int = 0
    infrastructure_failures: int = 0
    """Failures in a row since the job last got further."""
    deaths: int = 0
    """Of these, attempts whose own process died."""
    retry_at: datetime | None = None
    """Set between attempts: the newest attempt is over, and the next may start at this time."""


@dataclass(frozen=True, slots=True)
class Observation:
    """What was seen of the newest attempt. The outcome must be read after Ray was asked."""

    ray: RayStatus
    message: str = ""
    error_type: str | None = None
    outcome: AttemptOutcome | None = None
    waited: timedelta = timedelta(0)
    """How long ago the cluster took the attempt."""
    silent: timedelta = timedelta(0)
    """How long ago the job last changed."""
    slot_free: bool = True
    """Whether another job may be started beside those that run."""


NOTHING_SEEN = Observation(ray=RayStatus.NOT_FOUND)


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do but to say why. `state` may differ from the job's."""

    state: JobState
    reason: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Submit this attempt (again: the submission id makes it harmless)."""

    attempt: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rouse:
    """As `Wait`, and the cluster is made to look after the newest attempt where that said nothing new."""

    state: JobState
    reason: str


@dataclass(frozen=True, slots=True)
class Stop:
    """Ask the cluster to stop the newest attempt."""

    reason: str


@dataclass(frozen=True, slots=True)
class Retry:
    """The newest attempt is over; another follows at `at`. The counters are the new ones."""

    state: JobState
    at: datetime
    reason: str
    unknown_failures: int
    infrastructure_failures: int
    deaths: int


@dataclass(frozen=True, slots=True)
class Succeed:
    """The attempt published its model, or its labels."""

    made: PublishedModel | BatchResult


@dataclass(frozen=True, slots=True)
class Fail:
    """The job ends here."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Cancel:
    """The job ends here, because it was asked to."""

    reason: str = "Cancelled on request."


Action = Wait | Submit | Rouse | Stop | Retry | Succeed | Fail | Cancel


def decide(job: JobView, seen: Observation, now: datetime, backoff: Backoff) -> Action:
    """The one next thing to do for a job that has not ended."""
    outcome = seen.outcome if job.retry_at is None else None
    made = None if outcome is None else outcome.published or outcome.predicted
    if made is not None:
        return Succeed(made)
    if job.cancel_requested:
        return _decide_cancel(job, seen, outcome)
    if job.attempt == 0 or job.retry_at is not None:
        return _decide_start(job, seen, now)
    if outcome is not None:
        failure = outcome.failure or _unexplained("The attempt ended without a result and without a reason.")
        if failure.code == PROCESS_LOST:
            return _after_death(job, failure.message, now, backoff)
        return _after_failure(job, failure, now, backoff)
    return _decide_running(job, seen, now, backoff)


def _decide_cancel(job: JobView, seen: Observation, outcome: AttemptOutcome | None) -> Action:
    over = job.attempt == 0 or job.retry_at is not None
    if over or (outcome is not None and seen.ray is not RayStatus.RUNNING):
        return Cancel()
    match seen.ray:
        case RayStatus.UNREACHABLE:
            return Wait(
                JobState.CANCELLING,
                f"Cannot reach the Ray cluster; stops as soon as it answers. {seen.message}".rstrip(),
            )
        case RayStatus.PENDING | RayStatus.RUNNING:
            return Stop(f"Stopping attempt {job.attempt}.")
        case RayStatus.SUCCEEDED | RayStatus.FAILED | RayStatus.STOPPED | RayStatus.NOT_FOUND:
            return Cancel()


def _decide_start(job: JobView, seen: Observation, now: datetime) -> Action:
    if job.retry_at is not None and now < job.retry_at:
        return Wait(job.state, "")
    if not seen.slot_free:
        return Wait(JobState.QUEUED, "Waits for other jobs to finish.")
    number = job.attempt + 1
    return Submit(number, f"Attempt {number} is submitted to the Ray cluster.")


def _decide_running(job: JobView, seen: Observation, now: datetime, backoff: Backoff) -> Action:
    """An attempt was started, and has left no outcome so far."""
    match seen.ray:
        case RayStatus.UNREACHABLE:
            then = "may well be running" if job.submitted else "starts as soon as it answers"
            return Wait(job.state, f"Cannot reach the Ray cluster; attempt {job.attempt} {then}.")
        case RayStatus.PENDING:
            if seen.waited < PENDING_GRACE:
                return Wait(job.state, f"Attempt {job.attempt} is starting.")
            reason = f"No machine has started attempt {job.attempt} yet.{_said(seen.message)}"
            return Wait(JobState.WAITING_FOR_CAPACITY, reason)
        case RayStatus.RUNNING:
            state, reason = _running(job)
            return Wait(state, reason) if seen.silent < SILENCE else Rouse(state, reason)
        case RayStatus.NOT_FOUND:
            if not job.submitted:
                return Submit(job.attempt, f"Attempt {job.attempt} is submitted to the Ray cluster.")
            lost = "The Ray cluster was restarted and no longer knows the attempt."
            return _after_failure(job, _infrastructure("attempt_lost", lost), now, backoff)
        case RayStatus.STOPPED:
            stopped = "The attempt was stopped from outside; to stop a job for good, cancel it."
            return _after_failure(job, _infrastructure("attempt_stopped", stopped), now, backoff)
        case RayStatus.SUCCEEDED:
            return _after_failure(job, _unexplained("The attempt ended without leaving a result."), now, backoff)
        case RayStatus.FAILED:
            if seen.error_type in NOT_STARTED_ERRORS:
                failure = _infrastructure("attempt_not_started", f"Ray could not run the attempt.{_said(seen.message)}")
                return _after_failure(job, failure, now, backoff)
            died = f"The attempt's process died without a word.{_said(seen.message)}"
            return _after_death(job, died, now, backoff)


def _running(job: JobView) -> tuple[JobState, str]:
    if job.waiting is not None:
        return JobState.WAITING_FOR_CAPACITY, job.waiting
    begins = job.state in (JobState.QUEUED, JobState.WAITING_FOR_CAPACITY)
    return JobState.PREPARING if begins else job.state, f"Attempt {job.attempt} is running."


def _after_death(job: JobView, what: str, now: datetime, backoff: Backoff) -> Action:
    """`what` is a sentence. Machines fail now and then; what dies at the same place every time is at fault itself."""
    deaths = job.deaths + 1
    if deaths < DEATHS_BEFORE_COUNTING:
        return _after_failure(job, _infrastructure("attempt_died", what), now, backoff, deaths=deaths)
    failure = _unexplained(
        f"{what.rstrip('.')}, for the {deaths}th time in a row without getting further: it may need more memory than "
        "the machine has, or one of its images may crash what reads it."
    )
    return _after_failure(job, failure, now, backoff, deaths=deaths)


def _after_failure(
    job: JobView, failure: Failure, now: datetime, backoff: Backoff, *, deaths: int | None = None
) -> Action:
    """`deaths` is null for a failure that was explained, which leaves the count as it was."""
    deaths = job.deaths if deaths is None else deaths
    unknown, infrastructure = job.unknown_failures, job.infrastructure_failures
    match failure.failure_class:
        case FailureClass.USER:
            return Fail(failure)
        case FailureClass.UNKNOWN:
            unknown += 1
            if unknown >= job.max_attempts:
                return Fail(failure)
        case FailureClass.INFRASTRUCTURE | FailureClass.CAPACITY:
            infrastructure += 1
    wait = backoff.delay(max(1, infrastructure + unknown))
    capacity = failure.failure_class is FailureClass.CAPACITY
    return Retry(
        state=JobState.WAITING_FOR_CAPACITY if capacity else JobState.QUEUED,
        at=now + wait,
        reason=f"Attempt {job.attempt} ended: {failure.message} Attempt {job.attempt + 1} follows in {_words(wait)}.",
        unknown_failures=unknown,
        infrastructure_failures=infrastructure,
        deaths=deaths,
    )


def _said(message: str) -> str:
    """Ray's own words, without the log that it appends to them."""
    first = message.strip().partition("\n")[0]
    return f" Ray says: {first[:MAX_MESSAGE_CHARACTERS]}" if first else ""


def _words(wait: timedelta) -> str:
    seconds = wait.total_seconds()
    return f"{seconds:.0f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def _infrastructure(code: str, message: str) -> Failure:
    return Failure(failure_class=FailureClass.INFRASTRUCTURE, code=code, message=message)


def _unexplained(message: str) -> Failure:
    return Failure(failure_class=FailureClass.UNKNOWN, code="attempt_failed", message=message)
