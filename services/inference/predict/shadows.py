"""Challengers in the shadow of the versions that answer: scored on the same images, waited for by nobody.

Where both versions share a trunk, the replica applies both tails to what the trunk made of the image. Otherwise the
challenger's trunk is asked, after the answer. Either way it happens within a budget of this process; what has no room
is dropped, and what fails is counted and logged.
"""

import asyncio
import time
from typing import Protocol

import httpx2
import structlog

from services.contracts.errors import InternalError, Overloaded, RekindleError
from services.contracts.predictions import Prediction
from services.contracts.serving import ReplicaScore
from services.inference.predict.choosing import Chosen
from services.inference.predict.measures import Outcome, count_shadow
from services.inference.predict.queries import ServedVersion
from services.inference.replicas import Replicas

AT_ONCE = 16
"""Images whose challengers are waited for; also bounds the connections and the memory that they hold."""
TIMEOUT_S = 5.0
"""How long a challenger may take after the answer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Score(Protocol):
    """What a challenger will say of an image."""

    async def read(self) -> ReplicaScore:
        """Waits for it. Raises a `RekindleError` or `httpx2.HTTPError`."""
        ...

    async def aclose(self) -> None:
        """Lets go of it, whether it was read or not."""
        ...


class Shadows:
    """Answers images whose alias has a challenger. One per process; `aclose` it."""

    def __init__(self, replicas: Replicas, *, at_once: int = AT_ONCE, timeout_s: float = TIMEOUT_S) -> None:
        self._replicas = replicas
        self._free = at_once
        self._timeout_s = timeout_s
        self._tasks: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Ends what still runs. Its images are counted nowhere."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def predict(
        self, chosen: Chosen, challenger: ServedVersion, image: bytes, top_k: int, deadline: float
    ) -> list[Prediction]:
        """What `Replicas.predict` gives and raises for the version that answers. The challenger goes on after it."""
        if self._free < 1:
            predictions = await self._replicas.predict(chosen.served, image, top_k, deadline)
            count_shadow(chosen, Outcome.DROPPED, None)
            return predictions
        self._free -= 1
        started_s = time.perf_counter()
        try:
            if challenger.trunk_id == chosen.served.trunk_id:
                predictions, score = await self._replicas.predict_beside(
                    chosen.served, challenger.version, image, top_k, deadline
                )
            else:
                predictions = await self._replicas.predict(chosen.served, image, top_k, deadline)
                started_s = time.perf_counter()
                score = _SecondRequest(self._replicas, challenger, image, self._timeout_s)
        except BaseException:
            self._free += 1
            raise
        task = asyncio.create_task(self._compare(chosen, predictions[0].label, score, started_s))
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return predictions

    async def _compare(self, chosen: Chosen, label: str, score: Score | None, started_s: float) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                challengers = await _label(score)
        except Overloaded:
            count_shadow(chosen, Outcome.DROPPED, None)
        except (TimeoutError, RekindleError, httpx2.HTTPError) as error:
            count_shadow(chosen, Outcome.FAILED, None)
            served, shadow = chosen.served, chosen.shadow
            log.warning(
                "shadow.failed",
                model=served.model_name,
                challenger=None if shadow is None else shadow.version,
                reason=str(error) or type(error).__name__,
            )
        else:
            outcome = Outcome.AGREED if challengers == label else Outcome.DISAGREED
            count_shadow(chosen, outcome, time.perf_counter() - started_s)
        finally:
            if score is not None:
                await score.aclose()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._free += 1
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("shadow.bug", exc_info=error)  # nobody waits for the task


class _SecondRequest:
    """A challenger on another trunk."""

    def __init__(self, replicas: Replicas, challenger: ServedVersion, image: bytes, timeout_s: float) -> None:
        self._replicas = replicas
        self._challenger = challenger
        self._image = image
        self._timeout_s = timeout_s

    async def read(self) -> ReplicaScore:
        """See `Score`."""
        deadline = asyncio.get_running_loop().time() + self._timeout_s
        predictions = await self._replicas.predict(self._challenger, self._image, 1, deadline)
        return ReplicaScore(label=predictions[0].label)

    async def aclose(self) -> None:
        """See `Score`."""


async def _label(score: Score | None) -> str:
    """The label that a challenger finds most probable. Raises `Overloaded` where there was no room for it."""
    if score is None:
        raise Overloaded("the replica is of a release that knows no challengers")
    said = await score.read()
    if said.dropped:
        raise Overloaded("the replica has too much to do for challengers")
    if said.label is None:
        raise InternalError(said.error or "the replica gives no reason")
    return said.label
