"""When the object stores try again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.errors import NotFound, ObjectStoreUnavailable
from services.runtime.objects.retry import RetryPolicy, call_with_retry

POLICY = RetryPolicy(base_delay_s=1, max_delay_s=10, total_s=60)


@pytest.mark.parametrize(
    ("failures", "jitter", "expected"),
    [(1, 0.5, 0.5), (2, 0.5, 1.0), (3, 0.5, 2.0), (4, 0.5, 4.0), (5, 0.5, 5.0), (5000, 0.5, 5.0), (3, 0.0, 0.0)],
)
def test_waits_double_up_to_the_limit(failures: int, jitter: float, expected: float) -> None:
    assert POLICY.delay_s(failures, 0, jitter) == expected


@pytest.mark.parametrize(("elapsed_s", "expected"), [(59.0, 1.0), (59.5, None), (1000.0, None)])
def test_no_try_begins_after_the_total(elapsed_s: float, expected: float | None) -> None:
    assert POLICY.delay_s(2, elapsed_s, 0.5) == expected


@given(st.integers(1, 10**6), st.floats(0, 100), st.floats(0, 1, exclude_max=True))
def test_a_wait_is_never_negative_or_beyond_the_limits(failures: int, elapsed_s: float, jitter: float) -> None:
    delay_s = POLICY.delay_s(failures, elapsed_s, jitter)

    assert delay_s is None or (0 <= delay_s <= 10 and elapsed_s + delay_s <= 60)


@pytest.mark.parametrize("values", [(-1, 1, 1), (2, 1, 1), (0, 1, -1)])
def test_senseless_policies_are_refused(values: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="base_delay_s"):
        RetryPolicy(*values)


class Scene:
    """A clock that moves only by sleeping, and an operation that fails a number of times."""

    def __init__(self, failures: int, failure: Exception) -> None:
        self.now_s, self.failures, self.failure, self.calls = 0.0, failures, failure, 0

    def operate(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.failure
        return "done"

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds

    def run(self) -> str:
        return call_with_retry(self.operate, POLICY, clock=lambda: self.now_s, sleep=self.sleep, jitter=lambda: 0.5)


def test_tries_until_it_works() -> None:
    scene = Scene(3, ObjectStoreUnavailable("busy"))

    assert scene.run() == "done"
    assert (scene.calls, scene.now_s) == (4, 0.5 + 1 + 2)


def test_gives_up_with_the_last_error() -> None:
    scene = Scene(10**6, ObjectStoreUnavailable("busy"))

    with pytest.raises(ObjectStoreUnavailable, match="busy"):
        scene.run()
    assert 50 < scene.now_s <= 60


def test_other_errors_go_on_at_once() -> None:
    scene = Scene(1, NotFound("no"))

    with pytest.raises(NotFound):
        scene.run()
    assert scene.calls == 1
