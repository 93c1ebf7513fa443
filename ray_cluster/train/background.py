"""Calls off the thread that computes: a slow bucket must not slow the training."""

import queue
import threading
from collections.abc import Callable

MAX_WAITING = 100


class Background:
    """Runs calls in their order on a thread of its own. The calls see to their own errors."""

    def __init__(self) -> None:
        self._calls: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, name="background", daemon=True)
        self._thread.start()

    def run(self, call: Callable[[], None], *, droppable: bool = False) -> None:
        """Returns at once. A droppable call is dropped while too many wait."""
        if not droppable or self._calls.qsize() < MAX_WAITING:
            self._calls.put(call)

    def close(self, timeout_s: float) -> bool:
        """Ends when all calls are done; whether that was within `timeout_s`."""
        self._calls.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
