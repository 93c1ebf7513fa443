"""What the outside may tell a running fit: who it works for, and to stop at the next step. Knows no TensorFlow, no Ray.

A fit goes on while nobody asks for it: its supervisor, the job's driver or the whole attempt may die, and the next
attempt adopts it where it stands. The identity under which it commits is that of whoever adopted it last.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class Identity:
    """Under whose authority a fit commits. A greater one fences all smaller ones."""

    attempt: int
    term: int


class Order(StrEnum):
    GO_ON = "go_on"
    SAVE = "save"
    """Save at the next step, and go on."""
    HAND_OVER = "hand_over"
    """Save at the next step, and stop: another trainer goes on from there."""
    ABANDON = "abandon"
    """Stop at the next step: nobody wants the result."""


class FitControl:
    """Shared by the fit's thread and those that serve calls."""

    def __init__(self, identity: Identity, clock: Callable[[], float] = time.monotonic) -> None:
        self._identity = identity
        self._clock = clock
        self._heard_at_s = clock()
        self._order = Order.GO_ON
        self._changed = threading.Condition()

    @property
    def identity(self) -> Identity:
        return self._identity

    def adopt(self, identity: Identity) -> bool:
        """Works for `identity` from now on. False: it works for a newer one already."""
        with self._changed:
            if identity < self._identity:
                return False
            self._identity = identity
            self._heard_at_s = self._clock()
            self._changed.notify_all()
            return True

    def hear(self, identity: Identity) -> bool:
        """Somebody asks for the fit under this identity. False: it works for another."""
        with self._changed:
            if identity != self._identity:
                return False
            self._heard_at_s = self._clock()
            return True

    def silent_s(self) -> float:
        """Seconds since anybody asked."""
        return self._clock() - self._heard_at_s

    def wait_until_adopted(self, after: Identity, timeout_s: float) -> bool:
        """Waits for a newer identity than `after`; whether there is one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._identity > after, timeout_s)

    def give(self, order: Order) -> None:
        """An order for the next step. One to stop stays; the newest of the others counts."""
        with self._changed:
            if self._order is not Order.ABANDON:
                self._order = order

    def next_order(self) -> Order:
        """The order that stands. `SAVE` is taken by this and does not stand any longer."""
        with self._changed:
            order = self._order
            if order is Order.SAVE:
                self._order = Order.GO_ON
            return order
