"""Takes images to a trunk's replicas, as many in one call as are waiting: of any request, for any model.

A call costs as much as the work on its image, so under load images go in batches. Nothing waits for a batch to fill: as
long as fewer calls than allowed are under way, what comes goes at once, and what comes together is shared out to them.

How many images may wait follows from how fast they are answered: nobody is to be kept waiting for what can as well be
tried again elsewhere, or later. That keeps the time in a full queue the same, whatever the replicas run on (compare
CoDel, Nichols and Jacobson, 2012, which bounds the same time by dropping what has waited).
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.contracts.errors import Overloaded
from services.inference.pace import Pace
from services.runtime.fair_queue import FairQueue

MAX_BATCH = 16
"""Images of one call. They are answered together, so the first of them waits for the last."""
MAX_BATCH_BYTES = 16 * 1024 * 1024
"""A call that carries so much takes no more images."""
PLACE_S = 0.1
"""So long is a place kept for an image that is still to come: longer than one takes that is sent at once, and not as
long as a slow client or a bucket may take, who would keep places from others while nothing waits."""
STAY_S = 0.13
"""How long the last image that is taken in stays, at the pace of late."""
MIN_INSIDE = 34
"""So many may be there at any pace, under way or waiting: what goes in two calls, and two more."""

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


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[Answer]):
    parcel: Parcel
    answer: asyncio.Future[Answer]


class _Place:
    """Of a parcel that is still to come."""

    def __init__(self, expected: Counter[str], model: str) -> None:
        self._expected: Counter[str] | None = expected
        self._model = model
        self._lapse = asyncio.get_running_loop().call_later(PLACE_S, self.give_up)
        expected[model] += 1

    def give_up(self) -> None:
        """Doing it again changes nothing."""
        if self._expected is not None:
            self._lapse.cancel()
            self._expected[self._model] -= 1
            if not self._expected[self._model]:
                del self._expected[self._model]
            self._expected = None


_PLACE: ContextVar[_Place | None] = ContextVar("place", default=None)
"""That is kept for who runs in this context, the tasks that it starts included."""


def give_up_place() -> None:
    """Of whoever runs in this context: what it was kept for has been asked."""
    if (place := _PLACE.get()) is not None:
        place.give_up()


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
        raises is every parcel's.

        `max_waiting` parcels may wait until it is known how fast they are answered, and never more.
        """
        self._send = send
        self._free_calls = calls_at_once
        self._starting_calls = 0
        """Those that have not taken their first batch."""
        self._pace = Pace()
        self._max_waiting = max_waiting
        self._under_way = 0
        """Parcels."""
        self._waiting: FairQueue[str, _Waiting[Answer]] = FairQueue(max_waiting)
        self._expected: Counter[str] = Counter()
        """By model, places that are kept for parcels to come."""
        self._calls: set[asyncio.Task[None]] = set()

    @contextmanager
    def place_for(self, model: str) -> Generator[None]:
        """Around whatever is going to ask for the model: until it does, or ends, or `PLACE_S` later, there is a place
        less for others.

        Raises `Overloaded` where there is none. Costs next to nothing.
        """
        of_all = self._expected.total()
        if not self._waiting.has_room(model, of_flow=self._expected[model], of_all=of_all):
            raise self._overloaded(model)
        place = _Place(self._expected, model)
        token = _PLACE.set(place)
        try:
            yield
        finally:
            _PLACE.reset(token)
            place.give_up()

    async def ask(self, parcel: Parcel) -> Answer:
        """The parcel's answer; models take turns in the queue (`FairQueue`).

        Raises the parcel's error, or `Overloaded` where as many parcels wait as may and none of the other models has
        more than this one: at once, or later, when a parcel for another model needs the room.
        """
        waiting: _Waiting[Answer] = _Waiting(parcel, asyncio.get_running_loop().create_future())
        give_up_place()
        refused = self._waiting.put(parcel.model, waiting)
        if refused is not None and not refused.answer.done():
            refused.answer.set_exception(self._overloaded(refused.parcel.model))
        if refused is not waiting and self._free_calls:
            self._free_calls -= 1
            self._starting_calls += 1
            call = asyncio.ensure_future(self._drain())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            self._waiting.discard(parcel.model, waiting)  # its place is for others
            raise

    @property
    def waiting_count(self) -> int:
        """Parcels in the queue."""
        return len(self._waiting)

    async def ask_alone(self, parcel: Parcel) -> Answer:
        """The parcel's answer by a call of its own, at once and besides the others."""
        (answer,) = await self._send([parcel])
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _overloaded(self, model: str) -> Overloaded:
        return Overloaded(
            f"{len(self._waiting)} images are waiting already, which is the limit, and no model has more of them than "
            f"{model!r}; try again"
        )

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

    def _limit_waiting(self) -> None:
        if self._pace.per_s is not None:
            inside = max(MIN_INSIDE, round(STAY_S * self._pace.per_s))
            self._waiting.capacity = max(1, min(self._max_waiting, inside - self._under_way))

    def _take(self, most: int) -> list[_Waiting[Answer]]:
        batch: list[_Waiting[Answer]] = []
        size_bytes = 0
        while len(batch) < most and size_bytes < MAX_BATCH_BYTES and (waiting := self._waiting.take()) is not None:
            if not waiting.answer.done():
                batch.append(waiting)
                size_bytes += len(waiting.parcel.image)
        return batch

    async def _deliver(self, batch: Sequence[_Waiting[Answer]]) -> None:
        self._under_way += len(batch)
        self._limit_waiting()
        try:
            answers = await self._send([waiting.parcel for waiting in batch])
        except Exception as error:  # noqa: BLE001 - whatever went wrong is the callers' to hear
            answers = [error] * len(batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.answer.cancel()
            raise
        finally:
            self._under_way -= len(batch)
        self._pace.done(len(batch), more=len(self._waiting) > 0)
        self._limit_waiting()
        for waiting, answer in zip(batch, answers, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(answer, Exception):
                waiting.answer.set_exception(answer)
            else:
                waiting.answer.set_result(answer)
