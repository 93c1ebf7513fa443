"""When to try again, and how long to wait before: exponential backoff with full jitter, bounded in total.

Full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015. Each wait is uniform between
nothing and a ceiling that doubles, so that clients that failed together do not come back together.
"""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from services.contracts.errors import ObjectStoreUnavailable

Result = TypeVar("Result")

_MAX_DOUBLINGS = 30


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How patient to be. A call takes at most `total_s` and one more try."""

    base_delay_s: float = 0.1
    """Ceiling of the first wait."""
    max_delay_s: float = 5.0
    """Ceiling of every later wait."""
    total_s: float = 20.0
    """No try begins later than this after the first one began."""

    def __post_init__(self) -> None:
        if not 0 <= self.base_delay_s <= self.max_delay_s or self.total_s < 0:
            raise ValueError(f"need 0 <= base_delay_s <= max_delay_s and 0 <= total_s: {self}")

    def delay_s(self, failures: int, elapsed_s: float, jitter: float) -> float | None:
        """Seconds to wait after the `failures`-th failure (from 1), or None to give up.

        `elapsed_s` has passed since the first try began; `jitter` is uniform in [0, 1).
        """
        ceiling_s = min(self.max_delay_s, self.base_delay_s * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
        delay_s = ceiling_s * jitter
        return delay_s if elapsed_s + delay_s <= self.total_s else None


def call_with_retry(
    operation: Callable[[], Result],
    policy: RetryPolicy,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> Result:
    """Calls the operation until it succeeds or the policy gives up; then its last `ObjectStoreUnavailable` goes on.

    Every other error goes on at once. The operation must be safe to repeat.
    """
    started_s = clock()
    failures = 0
    while True:
        try:
            return operation()
        except ObjectStoreUnavailable:
            failures += 1
            delay_s = policy.delay_s(failures, clock() - started_s, jitter())
            if delay_s is None:
                raise
        sleep(delay_s)
