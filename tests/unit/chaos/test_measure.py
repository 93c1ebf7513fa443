"""What a strike cost, read off a job's events."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from services.contracts.jobs import (
    EpochMetrics,
    JobEvent,
    JobEventType,
    JobState,
    Recovery,
    Stage,
    StageTiming,
)
from tests.chaos.runner.measure import NO_EFFECT, Effect, Window, counted, effect, percentile

START = datetime(2026, 11, 1, tzinfo=UTC)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def event(second: float, kind: JobEventType, data: BaseModel) -> JobEvent:
    return JobEvent(
        seq=1,
        type=kind,
        at=at(second),
        attempt=1,
        state=JobState.TRAINING,
        message="",
        data=data.model_dump(mode="json"),
    )


def fit(second: float, ended: float | None = None, stage: Stage = Stage.FIT) -> JobEvent:
    timing = StageTiming(
        stage=stage, attempt=1, started_at=at(second), finished_at=None if ended is None else at(ended)
    )
    return event(second if ended is None else ended, JobEventType.STAGE, timing)


def epoch(second: float, number: int) -> JobEvent:
    metrics = EpochMetrics(
        epoch=number, epochs=100, train_loss=1, train_accuracy=0, validation_loss=None, validation_accuracy=None
    )
    return event(second, JobEventType.EPOCH, metrics)


def recovery(resumed: float, first_step: float, number: int, lost: float | None = None) -> JobEvent:
    lost_at = None if lost is None else at(lost)
    data = Recovery(epoch=number, lost_at=lost_at, resumed_at=at(resumed), first_step_at=at(first_step))
    return event(first_step, JobEventType.RECOVERY, data)


def kill(second: float, until: float | None = None) -> Window:
    return Window(at(second), at(second), None if until is None else at(until))


STEADY = [fit(0), *(epoch(second, 10 * second) for second in range(1, 11))]
KILLED = [fit(0), epoch(1, 10), epoch(2, 20), epoch(3, 30), recovery(5, 6.5, 15), epoch(6.5, 16), epoch(7.5, 26)]


def test_training_that_goes_on_recovers_with_its_next_step() -> None:
    assert effect(STEADY, kill(4.5)) == Effect(0.5, False, None, None, None, 0, 0.0)


def test_what_a_restart_redoes_and_where_its_time_goes() -> None:
    found = effect(KILLED, kill(3.5))
    assert found == Effect(
        recovery_s=3.0,
        restarted=True,
        detected_s=None,
        trainer_s=1.5,
        first_step_s=1.5,
        steps_redone=15,
        redone_s=pytest.approx(1.5),
    )


def test_detection_is_split_off_where_it_is_known() -> None:
    found = effect([*KILLED[:4], recovery(5, 6.5, 15, lost=4.25), *KILLED[5:]], kill(3.5))
    assert (found.detected_s, found.trainer_s, found.first_step_s) == (0.75, 0.75, 1.5)


def test_a_supervisor_that_was_lost_as_well_knew_when_ray_told() -> None:
    found = effect(KILLED, Window(at(3.5), at(3.5), None, told_at=at(4.5)))
    assert (found.detected_s, found.trainer_s, found.first_step_s) == (1.0, 0.5, 1.5)
    late = effect(KILLED, Window(at(3.5), at(3.5), None, told_at=at(9)))
    assert (late.detected_s, late.trainer_s) == (None, 1.5)


def test_a_restart_that_redoes_nothing() -> None:
    found = effect([fit(0), epoch(3, 30), recovery(5, 6, 30), epoch(6, 31)], kill(3.5))
    assert (found.restarted, found.steps_redone, found.redone_s) == (True, 0, 0.0)


def test_training_that_went_on_after_a_notice_was_not_interrupted_yet() -> None:
    found = effect([fit(0), epoch(3, 30), epoch(8, 80), recovery(8.25, 9, 80), epoch(9, 81)], kill(3.5))
    assert (found.recovery_s, found.trainer_s, found.steps_redone) == (1.0, 0.25, 0)


def test_what_was_redone_before_is_not_counted_again() -> None:
    events = [*KILLED, epoch(8.5, 36), recovery(10, 11, 31), epoch(11, 32)]
    found = effect(events, kill(9))
    assert found.steps_redone == 5
    assert found.redone_s == pytest.approx(0.5)


def test_a_recovery_belongs_to_the_strike_before_it() -> None:
    assert effect(KILLED, kill(1.5, until=2.5)) == Effect(0.5, False, None, None, None, 0, 0.0)
    assert effect(KILLED, kill(6.8)) == Effect(pytest.approx(0.7), False, None, None, None, 0, 0.0)


def test_each_stages_epochs_count_by_themselves() -> None:
    fitted = [fit(0), epoch(1, 40), epoch(2, 80), fit(0, ended=2.5)]
    tuned = [fit(3, stage=Stage.FINE_TUNE), epoch(4, 1), epoch(5, 2), recovery(6, 7, 1), epoch(7, 2)]
    found = effect([*fitted, *tuned], kill(5.5))
    assert (found.restarted, found.steps_redone, found.redone_s) == (True, 1, pytest.approx(1.0))
    assert effect([*fitted, *tuned], kill(2.7)) == NO_EFFECT
    assert effect([*fitted, *tuned], kill(3.5)) == NO_EFFECT, "no step of the stage was done yet"


def test_an_outage_is_measured_from_its_end() -> None:
    events = [fit(0), epoch(1, 10), epoch(9, 90)]
    assert effect(events, Window(at(2), at(8), None)).recovery_s == 1.0


def test_a_restart_during_a_freeze_is_measured_from_when_it_resumed() -> None:
    found = effect(KILLED, Window(at(3.5), at(20), None))
    assert (found.trainer_s, found.recovery_s) == (0.0, 1.5)


@pytest.mark.parametrize(
    "events",
    [[], [fit(0)], [fit(0), epoch(1, 10), fit(0, ended=3), epoch(9, 20)], [fit(5), epoch(6, 10)]],
    ids=["nothing", "before the first step", "fit over", "not begun"],
)
def test_a_job_that_was_not_training_feels_nothing(events: list[JobEvent]) -> None:
    assert effect(events, kill(4)) == NO_EFFECT


def test_of_one_strike_restarts_count_and_else_the_worst() -> None:
    quick, slow, none = (Effect(seconds, False, None, None, None, 0, 0.0) for seconds in (0.1, 0.9, None))
    restarted = Effect(3.0, True, None, 1.0, 2.0, 5, 0.5)
    assert counted([quick, slow, none, NO_EFFECT]) == (slow,)
    assert counted([quick, restarted, slow]) == (restarted,)
    assert counted([NO_EFFECT]) == ()


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, None), ([3.0], 0.95, 3.0), ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0), (list(range(1, 101)), 0.95, 95)],
)
def test_percentiles(values: list[float], share: float, expected: float | None) -> None:
    assert percentile(values, share) == expected
