"""Takes images to a trunk's replicas, as many in one call as are waiting: of any request, for any model.

A call costs as much as the work on its image, so under load images go in batches. Nothing waits for a batch to fill: as
long as fewer calls than allowed are under way, what comes goes at once, and what comes together is shared out to them.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.contracts.errors import Overloaded

MAX_BATCH = 16
"""Images of one call. They are answered together, so the first of them waits for the last."""
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""Of one call; a larger image goes alone."""

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Parcel:
    """An image, and what is asked of it."""

    model: str
    version: int
    top_k: int
    image: bytes
    deadline: float
    """A time of the event loop's clock, after which nobody waits for the answer."""
    alone: bool = False
    """It may have brought a replica down, and shall not do so to others."""


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Answer]):
    parcel: Parcel
    answer: asyncio.Future[Answer]


class Courier(Generic[Answer]):
    """Of one trunk. Lives on one event loop."""

    def __init__(
        self,
        send: Callable[[Sequence[Parcel]], Awaitable[Sequence[Answer | Exception]]],
        *,
        calls_at_once: int,
        max_waiting: int,
    ) -> None:
        """`send` makes one call, and gives an answer or an error for each parcel, in order. An exception that it
        raises is every parcel's."""
        self._send = send
        self._max_waiting = max_waiting
        self._free_calls = calls_at_once
        self._starting_calls = 0
        """Those that have not taken their first batch."""
        self._waiting: deque[_Waiting[Answer]] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def ask(self, parcel: Parcel) -> Answer:
        """The parcel's answer. Raises its error, and `Overloaded` at once when `max_waiting` parcels wait already."""
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} images are waiting already, which is the limit; try again")
        waiting: _Waiting[Answer] = _Waiting(parcel, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._free_calls:
            self._free_calls -= 1
            self._starting_calls += 1
            call = asyncio.ensure_future(self._drain())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        return await waiting.answer

    async def aclose(self) -> None:
        """Gives up the calls that are under way."""
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    async def _drain(self) -> None:
        """One call after the other until nobody waits."""
        share = math.ceil(len(self._waiting) / self._starting_calls)
        self._starting_calls -= 1
        while batch := self._take(min(share, MAX_BATCH)):
            await self._deliver(batch)
            share = MAX_BATCH
        # In one step with the last look at the queue: a parcel that comes later finds the call free.
        self._free_calls += 1

    def _take(self, most: int) -> list[_Waiting[Answer]]:
        batch: list[_Waiting[Answer]] = []
        size_bytes = 0
        while self._waiting and len(batch) < most:
            waiting = self._waiting[0]
            size_bytes += len(waiting.parcel.image)
            if batch and (size_bytes > MAX_BATCH_BYTES or waiting.parcel.alone or batch[-1].parcel.alone):
                break
            self._waiting.popleft()
            if not waiting.answer.done():
                batch.append(waiting)
        return batch

    async def _deliver(self, batch: Sequence[_Waiting[Answer]]) -> None:
        try:
            answers = await self._send([waiting.parcel for waiting in batch])
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the callers' to hear
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
