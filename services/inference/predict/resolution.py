"""What a request's choice of a version means, without asking the database for every image, or for every model.

What was found stays true until a version or an alias changes, and one number of the database tells whether any has.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

import structlog

from services.contracts.errors import DatabaseUnavailable
from services.inference.predict.queries import Target, VersionChoice, find_target, read_generation
from services.runtime.database import Database

CHECK_EVERY_S = 1.0
"""So long may a request still get the version before a promotion, or a deleted one."""
CHECK_TIMEOUT_S = 0.5
"""A database that does not answer so soon counts as one that does not answer."""
OUTAGE_S = 300.0
"""How long what is known outlives the last answer of the database: nothing can be promoted meanwhile, but by a gateway
that reaches it while this one does not."""
CACHE_SIZE = 65_536

Lookup = Callable[[VersionChoice], Awaitable[Target]]
GenerationReader = Callable[[], Awaitable[int]]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def database_lookup(database: Database) -> Lookup:
    """`find_target` in a session of its own."""

    async def look_up(choice: VersionChoice) -> Target:
        async with database.session() as session:
            return await find_target(session, choice)

    return look_up


def database_generation(database: Database) -> GenerationReader:
    """`read_generation` in a session of its own."""

    async def read() -> int:
        async with database.session() as session:
            return await read_generation(session)

    return read


class Resolver:
    """Remembers what was found until something changes, and nothing about what was not."""

    def __init__(
        self, look_up: Lookup, read_generation: GenerationReader, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look_up = look_up
        self._read_generation = read_generation
        self._clock = clock
        self._remembered: OrderedDict[VersionChoice, Target] = OrderedDict()
        self._generation: int | None = None
        self._checking = asyncio.Lock()
        self._next_check_s = self._known_until_s = 0.0
        self._database_answers = True

    def remembered(self, choice: VersionChoice) -> Target | None:
        """What was meant when it was last asked for, if that is still in memory."""
        return self._remembered.get(choice)

    async def resolve(self, choice: VersionChoice) -> Target:
        """What is meant. Raises `NotFound` and `DatabaseUnavailable`."""
        if self._clock() >= self._next_check_s:
            async with self._checking:
                if self._clock() >= self._next_check_s:
                    await self._check()
        remembered = self._remembered.get(choice)
        if remembered is not None:
            self._remembered.move_to_end(choice)
            return remembered
        generation = self._generation
        target = await self._look_up(choice)
        if generation == self._generation:  # otherwise it may be of before the change
            self._remembered[choice] = target
            if len(self._remembered) > CACHE_SIZE:
                self._remembered.popitem(last=False)
        return target

    async def _check(self) -> None:
        """Forgets everything where something has changed, and where the database has not told for too long."""
        asked_s = self._clock()
        try:
            async with asyncio.timeout(CHECK_TIMEOUT_S):
                generation = await self._read_generation()
        except (DatabaseUnavailable, TimeoutError) as error:
            self._next_check_s = self._clock() + CHECK_EVERY_S
            if asked_s >= self._known_until_s:
                self._remembered.clear()
            if self._database_answers:
                log.warning("resolution.unchecked", models=len(self._remembered), reason=str(error) or "timeout")
            self._database_answers = False
            return
        if generation != self._generation:
            self._generation = generation
            self._remembered.clear()
        self._next_check_s, self._known_until_s = asked_s + CHECK_EVERY_S, asked_s + OUTAGE_S
        self._database_answers = True
