"""Batches without waiting: a free worker takes what is in the queue, up to a bound, and never waits for more.

The queue is shared fairly by flows; a batch may hold items of several.

Lives on one event loop; the work itself runs in threads.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.contracts.errors import InternalError, Overloaded
from services.runtime.fair_queue import FairQueue

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    flow: str
    answer: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Runs items through `run` in batches, on `workers` threads.

    Items of one flow are taken in the order they came, and flows take turns (`FairQueue`). An item whose caller has
    gone away before its batch starts is left out.
    """

    def __init__(
        self,
        run: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        *,
        workers: int,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        """`run` is called in a thread and answers one result, or one error, per item, in order.

        An exception that `run` raises fails the whole batch. At most `workers` calls run at the same time, and at most
        `max_waiting` items wait for one.
        """
        self._run = run
        self._max_batch = max_batch
        self._waiting: FairQueue[str, _Waiting[Item, Result]] = FairQueue(max_waiting)
        self._free_slots = list(range(workers))
        self._batch_started: dict[int, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="trunk")

    async def submit(self, item: Item, flow: str) -> Result:
        """The item's result.

        Raises the item's own error, or `Overloaded` where `max_waiting` items wait and none of the other flows has more
        than this one: at once, or later, when an item of another flow needs the room.
        """
        waiting: _Waiting[Item, Result] = _Waiting(item, flow, asyncio.get_running_loop().create_future())
        refused = self._waiting.put(flow, waiting)
        if refused is not None and not refused.answer.done():
            refused.answer.set_exception(self._overloaded(refused.flow))
        if refused is not waiting and self._free_slots:
            task = asyncio.ensure_future(self._drain(self._free_slots.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        try:
            return await waiting.answer
        except asyncio.CancelledError:
            self._waiting.discard(flow, waiting)  # its place is for others
            raise

    @property
    def waiting_count(self) -> int:
        """Items in the queue."""
        return len(self._waiting)

    @property
    def waiting_share(self) -> float:
        """How full the queue is, 0 to 1."""
        return self.waiting_count / self._waiting.capacity

    def _overloaded(self, flow: str) -> Overloaded:
        return Overloaded(
            f"{len(self._waiting)} images are waiting already, which is the limit, and no model has more of them than "
            f"{flow!r}; try again"
        )

    @property
    def is_running(self) -> bool:
        """Whether a batch is in progress; may be asked from any thread."""
        return bool(self._batch_started)

    def longest_running_s(self) -> float:
        """How long ago the oldest batch now in progress was started, in seconds; 0 when idle."""
        return time.monotonic() - min(self._batch_started.values()) if self._batch_started else 0.0

    async def _drain(self, slot: int) -> None:
        """One worker: batch after batch until nobody waits."""
        while batch := self._take():
            self._batch_started[slot] = time.monotonic()
            await self._answer(batch)
            del self._batch_started[slot]
        # In one step with the last look at the queue: an item that comes later finds the slot free.
        self._free_slots.append(slot)

    def _take(self) -> list[_Waiting[Item, Result]]:
        batch: list[_Waiting[Item, Result]] = []
        while len(batch) < self._max_batch and (waiting := self._waiting.take()) is not None:
            if not waiting.answer.done():
                batch.append(waiting)
        return batch

    async def _answer(self, batch: list[_Waiting[Item, Result]]) -> None:
        items = [waiting.item for waiting in batch]
        call = asyncio.get_running_loop().run_in_executor(self._threads, self._run, items)
        # Waiting, unlike awaiting, does not raise: whatever went wrong belongs to the callers, and the worker lives on.
        await asyncio.wait([call])
        failure = call.exception()
        results = [failure] * len(batch) if failure is not None else list(call.result())
        if len(results) != len(batch):
            results = [InternalError(f"{len(batch)} images gave {len(results)} results")] * len(batch)
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():
                continue
            if isinstance(result, BaseException):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(result)
