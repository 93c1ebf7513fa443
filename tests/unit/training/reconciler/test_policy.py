"""What is done about a job: one row per situation, and random histories that must all end well."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.contracts.ids import JobId
from services.contracts.jobs import PROCESS_LOST, AttemptOutcome, Failure, FailureClass, JobState, PublishedModel
from services.training.ray_api import RayStatus
from services.training.reconciler.policy import (
    DEATHS_BEFORE_COUNTING,
    NOT_STARTED_ERRORS,
    PENDING_GRACE,
    SILENCE,
    Action,
    Backoff,
    Cancel,
    Fail,
    JobView,
    Observation,
    Retry,
    Rouse,
    Stop,
    Submit,
    Succeed,
    Wait,
    decide,
)

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
BACKOFF = Backoff(initial_s=2, max_s=120)
JOB = JobView(state=JobState.TRAINING, attempt=2, submitted=True, cancel_requested=False, max_attempts=3)
NEW = replace(JOB, state=JobState.QUEUED, attempt=0, submitted=False)
PUBLISHED = PublishedModel(model_name="flowers", version=1, accuracy=0.9, evaluated_split="test")


def outcome(failure_class: FailureClass | None = None, *, message: str = "It broke.") -> AttemptOutcome:
    failure = None if failure_class is None else Failure(failure_class=failure_class, code="broken", message=message)
    return AttemptOutcome(
        job_id=JobId("job_" + "0" * 24),
        attempt=2,
        finished_at=NOW,
        published=PUBLISHED if failure is None else None,
        failure=failure,
    )


def look(ray: RayStatus, **seen: object) -> Observation:
    return Observation(ray=ray, **seen)


# --- one look -------------------------------------------------------------------------------------------------------


def test_a_new_job_is_submitted_as_attempt_1() -> None:
    job = replace(JOB, state=JobState.QUEUED, attempt=0, submitted=False)
    action = decide(job, look(RayStatus.NOT_FOUND), NOW, BACKOFF)
    assert isinstance(action, Submit)
    assert action.attempt == 1


def test_a_new_job_waits_for_its_turn_while_others_run() -> None:
    job = replace(JOB, state=JobState.QUEUED, attempt=0, submitted=False)
    action = decide(job, look(RayStatus.NOT_FOUND, slot_free=False), NOW, BACKOFF)
    assert isinstance(action, Wait)
    assert action.state is JobState.QUEUED


def test_an_attempt_whose_submission_got_lost_is_submitted_under_the_same_number() -> None:
    job = replace(JOB, state=JobState.QUEUED, submitted=False)
    action = decide(job, look(RayStatus.NOT_FOUND), NOW, BACKOFF)
    assert isinstance(action, Submit)
    assert action.attempt == 2


def test_a_retry_does_not_start_before_its_time() -> None:
    job = replace(JOB, state=JobState.QUEUED, retry_at=NOW + timedelta(seconds=1))
    assert isinstance(decide(job, look(RayStatus.NOT_FOUND), NOW, BACKOFF), Wait)


def test_a_retry_starts_at_its_time_with_the_next_number() -> None:
    action = decide(replace(JOB, state=JobState.QUEUED, retry_at=NOW), look(RayStatus.NOT_FOUND), NOW, BACKOFF)
    assert isinstance(action, Submit)
    assert action.attempt == 3


def test_a_short_wait_for_the_cluster_is_no_wait_for_capacity() -> None:
    job = replace(JOB, state=JobState.QUEUED)
    action = decide(job, look(RayStatus.PENDING, waited=PENDING_GRACE / 2), NOW, BACKOFF)
    assert action == Wait(JobState.QUEUED, "Attempt 2 is starting.")


def test_a_long_wait_for_the_cluster_is_a_wait_for_capacity_in_rays_own_words() -> None:
    seen = look(RayStatus.PENDING, waited=PENDING_GRACE, message="no node has 4 GPUs\nand a long log")
    action = decide(replace(JOB, state=JobState.QUEUED), seen, NOW, BACKOFF)
    assert isinstance(action, Wait)
    assert action.state is JobState.WAITING_FOR_CAPACITY
    assert action.reason.endswith("Ray says: no node has 4 GPUs")


@pytest.mark.parametrize("before", [JobState.QUEUED, JobState.WAITING_FOR_CAPACITY])
def test_an_attempt_that_runs_is_preparing(before: JobState) -> None:
    action = decide(replace(JOB, state=before), look(RayStatus.RUNNING), NOW, BACKOFF)
    assert action == Wait(JobState.PREPARING, "Attempt 2 is running.")


@pytest.mark.parametrize("before", [JobState.WAITING_FOR_CAPACITY, JobState.PREPARING])
def test_an_attempt_that_runs_and_waits_for_machines_is_waiting(before: JobState) -> None:
    job = replace(JOB, state=before, waiting="Waits for a spot node.")
    action = decide(job, look(RayStatus.RUNNING), NOW, BACKOFF)
    assert action == Wait(JobState.WAITING_FOR_CAPACITY, "Waits for a spot node.")


def test_an_attempt_that_waits_for_machines_dies_like_any_other() -> None:
    job = replace(JOB, state=JobState.WAITING_FOR_CAPACITY, waiting="Waits for a spot node.")
    assert isinstance(decide(job, look(RayStatus.FAILED), NOW, BACKOFF), Retry)
    assert isinstance(decide(replace(job, cancel_requested=True), look(RayStatus.RUNNING), NOW, BACKOFF), Stop)


def test_a_running_attempt_keeps_the_state_that_it_reported() -> None:
    assert decide(JOB, look(RayStatus.RUNNING), NOW, BACKOFF) == Wait(JobState.TRAINING, "Attempt 2 is running.")


@pytest.mark.parametrize(("silent", "expected"), [(SILENCE - timedelta(seconds=1), Wait), (SILENCE, Rouse)])
def test_the_cluster_is_made_to_look_after_an_attempt_that_has_gone_silent(
    silent: timedelta, expected: type[Wait | Rouse]
) -> None:
    action = decide(JOB, look(RayStatus.RUNNING, silent=silent), NOW, BACKOFF)
    assert action == expected(JobState.TRAINING, "Attempt 2 is running.")
    waiting = replace(JOB, state=JobState.WAITING_FOR_CAPACITY, waiting="Waits for a machine.")
    action = decide(waiting, look(RayStatus.RUNNING, silent=silent), NOW, BACKOFF)
    assert action == expected(JobState.WAITING_FOR_CAPACITY, "Waits for a machine.")


def test_unreachable_is_not_dead() -> None:
    action = decide(JOB, look(RayStatus.UNREACHABLE), NOW, BACKOFF)
    assert action == Wait(JobState.TRAINING, "Cannot reach the Ray cluster; attempt 2 may well be running.")


def test_an_attempt_that_the_cluster_never_got_waits_for_it() -> None:
    job = replace(JOB, state=JobState.QUEUED, submitted=False)
    action = decide(job, look(RayStatus.UNREACHABLE), NOW, BACKOFF)
    assert action == Wait(JobState.QUEUED, "Cannot reach the Ray cluster; attempt 2 starts as soon as it answers.")


@pytest.mark.parametrize("ray", list(RayStatus))
def test_a_published_model_is_a_success_whatever_ray_says(ray: RayStatus) -> None:
    assert decide(JOB, look(ray, outcome=outcome()), NOW, BACKOFF) == Succeed(PUBLISHED)


def test_a_persons_mistake_ends_the_job_at_once() -> None:
    action = decide(JOB, look(RayStatus.FAILED, outcome=outcome(FailureClass.USER)), NOW, BACKOFF)
    assert isinstance(action, Fail)
    assert action.failure.message == "It broke."


def test_an_infrastructure_failure_is_retried_however_often_it_happened() -> None:
    job = replace(JOB, unknown_failures=2, infrastructure_failures=10_000)
    action = decide(job, look(RayStatus.FAILED, outcome=outcome(FailureClass.INFRASTRUCTURE)), NOW, BACKOFF)
    assert isinstance(action, Retry)
    assert action.unknown_failures == 2
    assert action.at == NOW + timedelta(seconds=BACKOFF.max_s)


def test_no_capacity_is_a_wait_for_capacity() -> None:
    action = decide(JOB, look(RayStatus.FAILED, outcome=outcome(FailureClass.CAPACITY)), NOW, BACKOFF)
    assert isinstance(action, Retry)
    assert action.state is JobState.WAITING_FOR_CAPACITY
    assert action.unknown_failures == 0


def test_an_unknown_failure_is_retried_while_attempts_are_left() -> None:
    action = decide(
        replace(JOB, unknown_failures=1), look(RayStatus.FAILED, outcome=outcome(FailureClass.UNKNOWN)), NOW, BACKOFF
    )
    assert isinstance(action, Retry)
    assert action.unknown_failures == 2


def test_the_last_unknown_failure_ends_the_job() -> None:
    action = decide(
        replace(JOB, unknown_failures=2), look(RayStatus.FAILED, outcome=outcome(FailureClass.UNKNOWN)), NOW, BACKOFF
    )
    assert isinstance(action, Fail)


@pytest.mark.parametrize(
    ("ray", "error_type"),
    [
        (RayStatus.NOT_FOUND, None),
        (RayStatus.STOPPED, None),
        (RayStatus.FAILED, "JOB_SUPERVISOR_ACTOR_DIED"),
        (RayStatus.FAILED, "JOB_SUPERVISOR_ACTOR_START_TIMEOUT"),
        (RayStatus.FAILED, "RUNTIME_ENV_SETUP_FAILURE"),
    ],
)
def test_an_attempt_that_the_cluster_lost_is_retried_and_counts_for_nothing(
    ray: RayStatus, error_type: str | None
) -> None:
    job = replace(JOB, unknown_failures=2, deaths=DEATHS_BEFORE_COUNTING)
    action = decide(job, look(ray, error_type=error_type), NOW, BACKOFF)
    assert isinstance(action, Retry)
    assert (action.unknown_failures, action.deaths) == (2, DEATHS_BEFORE_COUNTING)


def test_a_driver_that_died_without_a_word_is_infrastructure() -> None:
    action = decide(replace(JOB, unknown_failures=2), look(RayStatus.FAILED, message="exit -9"), NOW, BACKOFF)
    assert isinstance(action, Retry)
    assert (action.unknown_failures, action.deaths) == (2, 1)
    assert "exit -9" in action.reason


def test_a_driver_that_always_dies_at_the_same_place_counts_in_the_end() -> None:
    job = replace(JOB, max_attempts=2)
    for _ in range(DEATHS_BEFORE_COUNTING):
        action = decide(job, look(RayStatus.FAILED), NOW, BACKOFF)
        assert isinstance(action, Retry)
        job = replace(job, deaths=action.deaths, unknown_failures=action.unknown_failures)
    action = decide(job, look(RayStatus.FAILED), NOW, BACKOFF)
    assert isinstance(action, Fail)
    assert "more memory" in action.failure.message


def test_an_attempt_that_ended_well_and_left_nothing_is_unexplained() -> None:
    action = decide(JOB, look(RayStatus.SUCCEEDED), NOW, BACKOFF)
    assert isinstance(action, Retry)
    assert action.unknown_failures == 1


def failed_with(failure_class: FailureClass, code: str) -> AttemptOutcome:
    ended = outcome(failure_class)
    assert ended.failure is not None
    return ended.model_copy(update={"failure": ended.failure.model_copy(update={"code": code})})


COUNTED = replace(JOB, unknown_failures=1, infrastructure_failures=1, deaths=1)
# An attempt's own account, and what is done: the next state, and which of the three counters grow.
ENDS: list[tuple[FailureClass, str, JobState, tuple[int, int, int]]] = [
    (FailureClass.USER, "class_too_small", JobState.FAILED, (0, 0, 0)),
    (FailureClass.INFRASTRUCTURE, "cluster_lost", JobState.QUEUED, (0, 1, 0)),
    (FailureClass.INFRASTRUCTURE, "object_store_unavailable", JobState.QUEUED, (0, 1, 0)),
    (FailureClass.INFRASTRUCTURE, PROCESS_LOST, JobState.QUEUED, (0, 1, 1)),
    (FailureClass.CAPACITY, "no_machine", JobState.WAITING_FOR_CAPACITY, (0, 1, 0)),
    (FailureClass.UNKNOWN, "internal_error", JobState.QUEUED, (1, 0, 0)),
]


@pytest.mark.parametrize(("failure_class", "code", "state", "counted"), ENDS)
@pytest.mark.parametrize("ray", [each for each in RayStatus if each is not RayStatus.RUNNING])
def test_the_rule_of_every_failure_class(
    failure_class: FailureClass, code: str, state: JobState, counted: tuple[int, int, int], ray: RayStatus
) -> None:
    action = decide(COUNTED, look(ray, outcome=failed_with(failure_class, code)), NOW, BACKOFF)
    if state is JobState.FAILED:
        assert isinstance(action, Fail)
        return
    assert isinstance(action, Retry)
    assert action.state is state
    grown = (action.unknown_failures - 1, action.infrastructure_failures - 1, action.deaths - 1)
    assert grown == counted


def test_the_table_of_failure_classes_is_complete() -> None:
    assert {row[0] for row in ENDS} == set(FailureClass)


# What Ray says of an attempt that left no account, and what is done.
SILENCES: list[tuple[RayStatus, str | None, type[Action], tuple[int, int, int]]] = [
    (RayStatus.PENDING, None, Wait, (0, 0, 0)),
    (RayStatus.RUNNING, None, Wait, (0, 0, 0)),
    (RayStatus.UNREACHABLE, None, Wait, (0, 0, 0)),
    (RayStatus.SUCCEEDED, None, Retry, (1, 0, 0)),
    (RayStatus.FAILED, None, Retry, (0, 1, 1)),
    *((RayStatus.FAILED, error_type, Retry, (0, 1, 0)) for error_type in sorted(NOT_STARTED_ERRORS)),
    (RayStatus.STOPPED, None, Retry, (0, 1, 0)),
    (RayStatus.NOT_FOUND, None, Retry, (0, 1, 0)),
]


@pytest.mark.parametrize(("ray", "error_type", "expected", "counted"), SILENCES)
def test_the_rule_of_every_ray_status(
    ray: RayStatus, error_type: str | None, expected: type[Action], counted: tuple[int, int, int]
) -> None:
    action = decide(COUNTED, look(ray, error_type=error_type), NOW, BACKOFF)
    assert type(action) is expected
    if isinstance(action, Retry):
        grown = (action.unknown_failures - 1, action.infrastructure_failures - 1, action.deaths - 1)
        assert grown == counted


def test_the_table_of_ray_statuses_is_complete() -> None:
    assert {row[0] for row in SILENCES} == set(RayStatus)


@pytest.mark.parametrize("tells", [False, True], ids=["silent", "told"])
def test_input_that_kills_its_process_again_and_again_ends_the_job(tells: bool) -> None:
    job = replace(JOB, max_attempts=3)
    seen = look(RayStatus.FAILED, outcome=failed_with(FailureClass.INFRASTRUCTURE, PROCESS_LOST) if tells else None)
    ends_with = DEATHS_BEFORE_COUNTING + job.max_attempts - 1
    for _ in range(ends_with - 1):
        action = decide(job, seen, NOW, BACKOFF)
        assert isinstance(action, Retry)
        job = replace(
            job,
            unknown_failures=action.unknown_failures,
            infrastructure_failures=action.infrastructure_failures,
            deaths=action.deaths,
        )
    action = decide(job, seen, NOW, BACKOFF)
    assert isinstance(action, Fail)
    assert f"for the {ends_with}th time in a row without getting further" in action.failure.message


@pytest.mark.parametrize(("failures", "wait_s"), [(1, 2), (2, 4), (3, 8), (7, 120), (10_000, 120)])
def test_waits_double_up_to_a_limit(failures: int, wait_s: float) -> None:
    assert BACKOFF.delay(failures) == timedelta(seconds=wait_s)


# --- cancelling -----------------------------------------------------------------------------------------------------

CANCELLING = replace(JOB, state=JobState.CANCELLING, cancel_requested=True)


@pytest.mark.parametrize("ray", [RayStatus.PENDING, RayStatus.RUNNING])
def test_a_live_attempt_is_stopped(ray: RayStatus) -> None:
    assert isinstance(decide(CANCELLING, look(ray), NOW, BACKOFF), Stop)


@pytest.mark.parametrize("ray", [RayStatus.STOPPED, RayStatus.FAILED, RayStatus.SUCCEEDED, RayStatus.NOT_FOUND])
def test_a_job_is_cancelled_once_its_attempt_is_over(ray: RayStatus) -> None:
    assert isinstance(decide(CANCELLING, look(ray), NOW, BACKOFF), Cancel)


def test_a_job_is_not_called_cancelled_while_its_attempt_may_run() -> None:
    assert isinstance(decide(CANCELLING, look(RayStatus.UNREACHABLE), NOW, BACKOFF), Wait)


def test_a_job_that_never_started_is_cancelled_at_once() -> None:
    assert isinstance(decide(replace(CANCELLING, attempt=0), look(RayStatus.NOT_FOUND), NOW, BACKOFF), Cancel)


def test_a_job_between_attempts_is_cancelled_at_once() -> None:
    job = replace(CANCELLING, retry_at=NOW + timedelta(hours=1))
    assert isinstance(decide(job, look(RayStatus.NOT_FOUND), NOW, BACKOFF), Cancel)


def test_a_model_that_was_published_before_the_cancellation_came_is_not_hidden() -> None:
    assert decide(CANCELLING, look(RayStatus.STOPPED, outcome=outcome()), NOW, BACKOFF) == Succeed(PUBLISHED)


# --- random histories -----------------------------------------------------------------------------------------------


@dataclass
class World:
    """A cluster that does anything, and a reconciler that carries out what the policy says."""

    view: JobView = NEW
    now: datetime = NOW
    reachable: bool = True
    ray: dict[int, RayStatus] = field(default_factory=dict)
    outcomes: dict[int, AttemptOutcome] = field(default_factory=dict)
    user_fault: bool = False
    unknown_faults: int = 0

    def look(self) -> Action:
        number = self.view.attempt
        status = self.ray.get(number, RayStatus.NOT_FOUND) if self.reachable else RayStatus.UNREACHABLE
        if self.reachable and number in self.ray:
            self.view = replace(self.view, submitted=True)
        seen = Observation(ray=status, outcome=self.outcomes.get(number))
        action = decide(self.view, seen, self.now, BACKOFF)
        self.carry_out(action)
        return action

    def carry_out(self, action: Action) -> None:
        match action:
            case Wait(state=state):
                self.view = replace(self.view, state=state)
            case Submit(attempt=number):
                alive = [each for each, status in self.ray.items() if status in (RayStatus.PENDING, RayStatus.RUNNING)]
                assert alive in ([], [number]), f"attempt {number} would run beside {alive}"
                assert number in (self.view.attempt, self.view.attempt + 1)
                fresh = number > self.view.attempt
                self.view = replace(
                    self.view,
                    attempt=number,
                    retry_at=None,
                    state=JobState.QUEUED,
                    submitted=self.view.submitted and not fresh,
                )
                if self.reachable:
                    self.ray.setdefault(number, RayStatus.PENDING)
            case Stop():
                assert self.view.cancel_requested
                self.ray[self.view.attempt] = RayStatus.STOPPED
            case Retry():
                assert not self.view.cancel_requested
                self.view = replace(
                    self.view,
                    state=action.state,
                    retry_at=action.at,
                    unknown_failures=action.unknown_failures,
                    infrastructure_failures=action.infrastructure_failures,
                    deaths=action.deaths,
                )
            case Succeed():
                self.view = replace(self.view, state=JobState.SUCCEEDED)
            case Fail():
                assert self.user_fault or self.unknown_faults >= self.view.max_attempts
                self.view = replace(self.view, state=JobState.FAILED)
            case Cancel():
                assert self.view.cancel_requested
                alive = [each for each, status in self.ray.items() if status in (RayStatus.PENDING, RayStatus.RUNNING)]
                assert not alive, "cancelled while it runs"
                self.view = replace(self.view, state=JobState.CANCELLED)

    def happen(self, event: str) -> None:
        number, status = self.view.attempt, self.ray.get(self.view.attempt)
        alive = status in (RayStatus.PENDING, RayStatus.RUNNING)
        match event:
            case "start" if status is RayStatus.PENDING:
                self.ray[number] = RayStatus.RUNNING
            case "die" if alive:
                self.ray[number] = RayStatus.FAILED
                # Deaths that follow each other without progress count in the end.
                if self.view.deaths + 1 >= DEATHS_BEFORE_COUNTING:
                    self.unknown_faults += 1
            case "infrastructure" | "capacity" | "unknown" | "user" if status is RayStatus.RUNNING:
                self.outcomes[number] = outcome(FailureClass(event))
                self.ray[number] = RayStatus.FAILED
                self.user_fault |= event == "user"
                self.unknown_faults += event == "unknown"
            case "publish" if status is RayStatus.RUNNING:
                self.outcomes[number] = outcome()
                self.ray[number] = RayStatus.SUCCEEDED
            case "part":
                self.reachable = False
            case "meet":
                self.reachable = True
            case "restart cluster":
                self.ray.clear()
            case "cancel":
                self.view = replace(self.view, cancel_requested=True, state=JobState.CANCELLING)
            case "time passes":
                self.now += timedelta(seconds=30)
            case _:
                pass


EVENTS = st.sampled_from(
    [
        "start",
        "start",
        "die",
        "infrastructure",
        "capacity",
        "unknown",
        "user",
        "publish",
        "part",
        "meet",
        "restart cluster",
        "cancel",
        "time passes",
        "look",
        "look",
        "look",
    ]
)


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(EVENTS, max_size=80))
def test_no_history_runs_two_attempts_at_once_or_leaves_a_job_without_an_end(events: list[str]) -> None:
    world = World()
    for event in events:
        if world.view.state.is_terminal:
            break
        if event == "look":
            world.look()
        else:
            world.happen(event)
    # The trouble is over: from here on the job must come to its end by itself.
    world.happen("meet")
    for _ in range(30):
        if world.view.state.is_terminal:
            break
        world.look()
        world.happen("start")
        world.happen("publish")
        world.now += timedelta(seconds=BACKOFF.max_s)
    assert world.view.state.is_terminal
