"""Which tasks take far longer than their like did. Pure but for the clock.

Beginning such a task a second time is MapReduce's backup task (Dean and Ghemawat, OSDI 2004, section 3.6): what makes
one slow is mostly its machine.
"""

import time
from collections.abc import Callable, Hashable
from statistics import median
from typing import Generic, TypeVar

Task = TypeVar("Task", bound=Hashable)

FACTOR = 3.0
"""A task is late after so many times the median of those that have ended."""
LEAST_S = 10.0
"""No task is late before: processes start, and machines hiccup."""


class Stragglers(Generic[Task]):
    """Of one kind of work, cut into pieces of about equal size."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began_s: dict[Task, float] = {}
        self._took_s: list[float] = []

    def began(self, task: Task) -> None:
        """It was handed out; the wait for a node counts too, so ask whether it runs before calling it slow."""
        self._began_s[task] = self._clock()

    def ended(self, task: Task) -> None:
        """It is done."""
        self._took_s.append(self._clock() - self._began_s.pop(task))

    def dropped(self, task: Task) -> None:
        """It was given up; its time says nothing."""
        del self._began_s[task]

    def late(self) -> list[Task]:
        """The tasks at work for far longer than the others took, the oldest first. None while none has ended."""
        if not self._took_s:
            return []
        patience_s = max(LEAST_S, FACTOR * median(self._took_s))
        now_s = self._clock()
        return [task for task, began_s in self._began_s.items() if now_s - began_s > patience_s]
