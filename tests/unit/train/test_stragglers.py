"""A task is late when it takes far longer than the others did, and not sooner."""

from ray_cluster.train.stragglers import FACTOR, LEAST_S, Stragglers


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def story(*took_s: float) -> tuple[Stragglers[str], Clock]:
    """One task after the other that took so long."""
    clock = Clock()
    stragglers: Stragglers[str] = Stragglers(clock)
    for number, each_s in enumerate(took_s):
        stragglers.began(f"done {number}")
        clock.now_s += each_s
        stragglers.ended(f"done {number}")
    return stragglers, clock


def test_nothing_is_late_before_something_has_ended() -> None:
    stragglers, clock = story()
    stragglers.began("a")
    clock.now_s += 1e6
    assert stragglers.late() == []


def test_a_task_is_late_after_a_multiple_of_the_median() -> None:
    stragglers, clock = story(20, 21, 400)
    stragglers.began("a")
    clock.now_s += FACTOR * 21
    assert stragglers.late() == []
    clock.now_s += 0.1
    assert stragglers.late() == ["a"]


def test_short_tasks_get_a_grace() -> None:
    stragglers, clock = story(0.1)
    stragglers.began("a")
    clock.now_s += LEAST_S
    assert stragglers.late() == []
    clock.now_s += 0.1
    assert stragglers.late() == ["a"]


def test_those_that_ended_or_were_given_up_are_not_late() -> None:
    stragglers, clock = story(1)
    for task in ("a", "b", "c"):
        stragglers.began(task)
    stragglers.dropped("a")
    clock.now_s += 1000
    stragglers.ended("b")
    clock.now_s += 10_000
    assert stragglers.late() == ["c"]
