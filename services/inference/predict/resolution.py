"""What a request's choice of a version means, without asking the database for every image."""

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from services.inference.predict.queries import Target, VersionChoice, find_target
from services.runtime.database import Database

CACHE_S = 1.0
"""How long an answer holds; so long may a request still get the version before a promotion, or a deleted one."""
CACHE_SIZE = 4096

Lookup = Callable[[VersionChoice], Awaitable[Target]]


def database_lookup(database: Database) -> Lookup:
    """`find_target` in a session of its own."""

    async def look_up(choice: VersionChoice) -> Target:
        async with database.session() as session:
            return await find_target(session, choice)

    return look_up


@dataclass(frozen=True, slots=True)
class _Remembered:
    target: Target
    expires_at: float


class Resolver:
    """Remembers what was found for `cache_s`, and nothing about what was not."""

    def __init__(
        self, look_up: Lookup, *, cache_s: float = CACHE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look_up = look_up
        self._cache_s = cache_s
        self._clock = clock
        self._remembered: OrderedDict[VersionChoice, _Remembered] = OrderedDict()

    async def resolve(self, choice: VersionChoice) -> Target:
        """What is meant. Raises `NotFound` and `DatabaseUnavailable`."""
        remembered = self._remembered.get(choice)
        if remembered is not None and self._clock() < remembered.expires_at:
            return remembered.target
        asked_at = self._clock()
        target = await self._look_up(choice)
        self._remembered[choice] = _Remembered(target, asked_at + self._cache_s)
        self._remembered.move_to_end(choice)
        while len(self._remembered) > CACHE_SIZE:
            self._remembered.popitem(last=False)
        return target
