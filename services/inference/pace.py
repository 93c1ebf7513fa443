"""How fast work gets done while there is always more, and so how much of it may wait."""

import time
from collections.abc import Callable

WINDOW_S = 0.5
"""How long work is counted for one measure."""
NEWEST_SHARE = 0.5
"""Weight of the newest measure; the rest is what was known before (exponential smoothing)."""


class Pace:
    """Pieces of work in a second, as long as none of the time is spent waiting for work."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` counts seconds."""
        self._clock = clock
        self._since_s: float | None = None
        self._count = 0
        self._per_s: float | None = None

    @property
    def per_s(self) -> float | None:
        """None as long as there was never enough work to tell."""
        return self._per_s

    def done(self, count: int, *, more: bool) -> None:
        """`count` pieces have just been done; `more` says whether others wait already."""
        now_s = self._clock()
        if self._since_s is not None:
            self._count += count
            elapsed_s = now_s - self._since_s
            if elapsed_s >= WINDOW_S:
                self._measured(self._count / elapsed_s)
                self._since_s = None
        if not more:
            self._since_s = None
        elif self._since_s is None:
            self._since_s, self._count = now_s, 0

    def _measured(self, per_s: float) -> None:
        before = per_s if self._per_s is None else self._per_s
        self._per_s = NEWEST_SHARE * per_s + (1 - NEWEST_SHARE) * before
