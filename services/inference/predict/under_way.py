"""The images of one request that are being asked for."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager

from services.contracts.errors import Overloaded


class UnderWay:
    """Counts them, and tells when one has got through. Lives on one event loop."""

    def __init__(self) -> None:
        self._count = 0
        self._news: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    @contextmanager
    def one(self) -> Generator[None]:
        """Around asking for an image. It got through unless that raises `Overloaded`."""
        self._count += 1
        got_through = True
        try:
            yield
        except Overloaded:
            got_through = False
            raise
        finally:
            self._count -= 1
            if got_through or self._count == 0:
                self._news.set_result(got_through)
                self._news = asyncio.get_running_loop().create_future()

    async def another_got_through(self, deadline: float) -> bool:
        """Waits until an image gets through; False as soon as none is under way, and at the deadline, a time of the
        event loop's clock."""
        if self._count == 0:
            return False
        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.shield(self._news)
        except TimeoutError:
            return False
