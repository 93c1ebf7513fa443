"""Wakes this process's tasks that wait for a change. Only saves time: all of them also look by themselves."""

import asyncio


class Pulse:
    """A condition without a value: `send` wakes everybody who waits now."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def send(self) -> None:
        """Wakes all waiting tasks. Call it on the event loop."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self, timeout_s: float) -> bool:
        """Returns at the next `send`, or False after the timeout."""
        event = self._event
        try:
            async with asyncio.timeout(timeout_s):
                await event.wait()
        except TimeoutError:
            return False
        return True
