"""Tails in memory: loaded on first use, once, and dropped least recently used first when the byte budget is spent.

Lives on one event loop: its methods never block and are never called from another thread.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """Something whose weight in memory is known."""

    @property
    def size_bytes(self) -> int: ...


Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value", bound=Sized)


class TailCache(Generic[Key, Value]):
    """A byte-bounded LRU cache that loads what it lacks.

    - Single flight: callers that ask for a key while it loads share that load. Loads of different keys run at the same
      time; nothing waits for a key but its own load.
    - Budget: what is kept never weighs more than `budget_bytes`. An entry that is larger than the whole budget by
      itself is handed to its callers and not kept. Entries being loaded, or still in use by a caller after they were
      dropped, are not counted.
    - Failures are not kept: every caller waiting on the load gets its error, the next one loads again.
    """

    def __init__(self, load: Callable[[Key], Awaitable[Value]], budget_bytes: int) -> None:
        """`load` reads one entry; `budget_bytes` must not be negative (0 keeps nothing)."""
        if budget_bytes < 0:
            raise ValueError(f"budget_bytes {budget_bytes} is negative")
        self._load = load
        self._budget_bytes = budget_bytes
        self._kept: OrderedDict[Key, Value] = OrderedDict()
        self._used_bytes = 0
        self._loading: dict[Key, asyncio.Task[Value]] = {}

    @property
    def used_bytes(self) -> int:
        """Weight of everything kept."""
        return self._used_bytes

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: Key) -> bool:
        return key in self._kept

    async def get(self, key: Key) -> Value:
        """The entry, loaded if need be. A caller that is cancelled leaves the load running for the others.

        Raises whatever `load` raises.
        """
        if (value := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return value
        task = self._loading.get(key)
        if task is None:
            task = asyncio.ensure_future(self._load_and_keep(key))
            self._loading[key] = task
            task.add_done_callback(_retrieve_error)
        return await asyncio.shield(task)

    async def _load_and_keep(self, key: Key) -> Value:
        try:
            value = await self._load(key)
            self._keep(key, value)
        finally:
            del self._loading[key]
        return value

    def _keep(self, key: Key, value: Value) -> None:
        if value.size_bytes > self._budget_bytes:
            return
        while self._used_bytes + value.size_bytes > self._budget_bytes:
            _, dropped = self._kept.popitem(last=False)
            self._used_bytes -= dropped.size_bytes
        self._kept[key] = value
        self._used_bytes += value.size_bytes


def _retrieve_error(task: asyncio.Task[Value]) -> None:
    """Marks the task's error as seen, so that asyncio does not report it when every caller has gone away."""
    if not task.cancelled():
        task.exception()
