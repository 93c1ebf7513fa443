"""Wakes this process's tasks that wait for a change. Only saves time: all of them also look by themselves."""

import asyncio


class Pulse:
    """Counts changes. Nothing is missed between a look and the wait that follows it."""

    def __init__(self) -> None:
        self._count = 0
        self._event = asyncio.Event()

    def mark(self) -> int:
        """Take it before you look, and wait for what comes after it."""
        return self._count

    def send(self) -> None:
        """Wakes everybody who waits. Call it on the event loop."""
        self._count += 1
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, mark: int, timeout_s: float) -> bool:
        """Returns as soon as there was a `send` after the mark, or False after the timeout."""
        if self._count != mark:
            return True
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True
