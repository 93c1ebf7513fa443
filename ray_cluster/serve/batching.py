"""Batches without waiting: a free worker takes what is in the queue, up to a bound, and never waits for more.

Lives on one event loop; the work itself runs in threads.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.contracts.errors import InternalError, Overloaded

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    answer: asyncio.Future[Result]


class Batcher(Generic[Item, Result]):
    """Runs items through `run` in batches, on `workers` threads.

    Items are taken in the order they came. An item whose caller has gone away before its batch starts is left out.
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

        An exception that `run` raises fails the whole batch. At most `workers` calls run at the same time.
        """
        self._run = run
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._free_slots = list(range(workers))
        self._batch_started: dict[int, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="trunk")

    async def submit(self, item: Item) -> Result:
        """The item's result.

        Raises `Overloaded` at once when `max_waiting` items wait already, or the item's own error.
        """
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded(f"{len(self._waiting)} images are waiting already, which is the limit; try again")
        waiting: _Waiting[Item, Result] = _Waiting(item, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._free_slots:
            task = asyncio.ensure_future(self._drain(self._free_slots.pop()))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await waiting.answer

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
        while self._waiting and len(batch) < self._max_batch:
            waiting = self._waiting.popleft()
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
