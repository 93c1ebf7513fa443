"""Work is counted only while there is always more of it."""

import pytest

from services.inference.pace import WINDOW_S, Pace


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


def work(pace: Pace, clock: Clock, per_s: float, seconds: float, *, more: bool = True) -> None:
    """A piece at a time."""
    for _ in range(round(per_s * seconds)):
        clock.now_s += 1 / per_s
        pace.done(1, more=more)


def test_it_is_what_is_done_while_more_waits(clock: Clock) -> None:
    pace = Pace(clock)
    assert pace.per_s is None
    work(pace, clock, 40, 2 * WINDOW_S)
    assert pace.per_s == pytest.approx(40)


def test_pauses_are_no_measure_of_it(clock: Clock) -> None:
    pace = Pace(clock)
    for _ in range(20):
        work(pace, clock, 40, 0.5 * WINDOW_S)
        pace.done(1, more=False)
        clock.now_s += 60
    assert pace.per_s is None
    work(pace, clock, 40, 2 * WINDOW_S)
    assert pace.per_s == pytest.approx(40)


def test_it_follows_a_change(clock: Clock) -> None:
    pace = Pace(clock)
    work(pace, clock, 200, 4 * WINDOW_S)
    work(pace, clock, 20, 20 * WINDOW_S)
    assert pace.per_s == pytest.approx(20, rel=0.01)
