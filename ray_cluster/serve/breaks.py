"""Breaks between pieces of work that others come before."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

TIMES = 3
"""A break lasts so many times as long as the work before it: that takes a quarter of its thread's time at most."""
LONGEST_S = 0.5


class Breaks:
    """Of one thread, as long as others are busy."""

    def __init__(
        self,
        busy: Callable[[], bool],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`busy` is asked from the working thread. `clock` and `sleep` are there for tests to replace."""
        self._busy = busy
        self._clock = clock
        self._sleep = sleep
        self._over_at = 0.0

    @contextmanager
    def before(self) -> Generator[None, None, None]:
        """Takes what is left of the break after the last piece of work, and then lets the next one begin."""
        left_s = self._over_at - self._clock()
        if left_s > 0 and self._busy():
            self._sleep(left_s)
        started_at = self._clock()
        try:
            yield
        finally:
            ended_at = self._clock()
            self._over_at = ended_at + min(TIMES * (ended_at - started_at), LONGEST_S)
