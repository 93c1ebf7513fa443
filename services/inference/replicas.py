"""Asking a trunk's replicas through Ray Serve's HTTP proxy, as `contracts/serving.py` says.

A replica's answer is final. Everything that means "not up yet" (no connection, no application at the route, a proxy
without replicas) is waited out: the request is held and tried again until its deadline.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakValueDictionary

import httpx2
from pydantic import ValidationError

from services.contracts.errors import (
    ClusterUnavailable,
    ImageRejected,
    InternalError,
    ModelLoading,
    NotFound,
    ObjectStoreUnavailable,
    Overloaded,
    RekindleError,
    RetryLater,
)
from services.contracts.ids import TrunkId
from services.contracts.predictions import NDJSON, Prediction
from services.contracts.serving import (
    CHALLENGER_HEADER,
    ReplicaError,
    ReplicaPrediction,
    ReplicaScore,
    trunk_route,
)
from services.inference.predict.queries import ServedVersion

Answer = TypeVar("Answer")

MAX_CONNECTIONS = 512
MODEL_CONNECTIONS = 128
"""Images of one model that are asked for at a time; more wait for each other, not for the connections of the rest."""
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 1.0
MAX_CRASHES = 3
"""Answers with status 500 in a row that are put down to a replica that died with the request; then it is a fault."""
HEALTH_TIMEOUT_S = 3.0

_FINAL: dict[str, type[RekindleError]] = {
    error.code: error for error in (ImageRejected, NotFound, Overloaded, ObjectStoreUnavailable)
}


@dataclass(frozen=True, slots=True)
class NotUp:
    """Nobody could answer; trying again may help."""

    reason: str
    crashed: bool = False
    """A replica or proxy may have died with the request."""
    timed_out: bool = False
    """The request was taken and waited in a queue until its deadline."""


def read_answer(response: httpx2.Response) -> list[Prediction] | NotUp:
    """What a response of Serve's proxy means.

    Raises what the replica raised (`ImageRejected`, `NotFound`, `Overloaded`, `ObjectStoreUnavailable`), `Overloaded`
    when the proxy's queue is full, and `InternalError` for an answer that the contract does not know.
    """
    if response.status_code == 200:
        return _read_predictions(response.content)
    try:
        refused = ReplicaError.model_validate_json(response.content)
    except ValidationError:
        return _read_proxy_answer(response)
    if refused.code in _FINAL:
        raise _FINAL[refused.code](refused.message, refused.details)
    raise InternalError(f"a replica answered {response.status_code} {refused.code}: {refused.message}")


def _read_predictions(body: bytes | str) -> list[Prediction]:
    try:
        return ReplicaPrediction.model_validate_json(body).predictions
    except ValidationError as error:
        raise InternalError(f"a replica answered something else than predictions: {error}") from error


def _read_proxy_answer(response: httpx2.Response) -> NotUp:
    """What Serve's proxy says by itself: plain text."""
    match response.status_code:
        case 404:
            return NotUp("its application is not deployed yet")
        case 503 if "retry-after" in response.headers:
            raise Overloaded("all replicas are busy and their queue is full: try again")
        case 502 | 503 | 504:
            return NotUp("no replica is up")
        case 408 | 499 | 500:
            return NotUp(f"Ray Serve answered with status {response.status_code}", crashed=True)
        case status:
            raise InternalError(f"Ray Serve answered with status {status}: {response.text[:500]}")


class PendingScore:
    """What a challenger will say of an image, on the rest of the replica's answer. `aclose` it."""

    def __init__(self, lines: AsyncIterator[str], opened: AsyncExitStack) -> None:
        self._lines = lines
        self._opened = opened

    async def read(self) -> ReplicaScore:
        """Waits for it.

        Raises:
            InternalError: the answer ends without one.
            httpx2.TransportError: the connection broke.
        """
        line = await anext(self._lines, None)
        try:
            return ReplicaScore.model_validate_json(line or "")
        except ValidationError as error:
            raise InternalError(f"a replica's answer ends without the challenger's score: {line!r}") from error

    async def aclose(self) -> None:
        """Ends the answer, whether it was read or not."""
        await self._opened.aclose()


class Replicas:
    """The trunks' replicas. One per process; `aclose` it."""

    def __init__(self, serve_url: str, *, transport: httpx2.AsyncBaseTransport | None = None) -> None:
        """`serve_url` is where Serve's proxy answers, e.g. `http://127.0.0.1:8000`."""
        self._client = httpx2.AsyncClient(
            base_url=serve_url,
            transport=transport,
            trust_env=False,
            timeout=HEALTH_TIMEOUT_S,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )
        self._answered: set[TrunkId] = set()
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By model; each lasts as long as somebody holds it or waits for it."""

    async def aclose(self) -> None:
        """Closes its connections."""
        await self._client.aclose()

    async def check(self) -> None:
        """Raises `ClusterUnavailable` when Serve's proxy does not answer."""
        try:
            response = await self._client.get("/-/healthz")
        except httpx2.HTTPError as error:
            raise ClusterUnavailable(
                f"Ray Serve at {self._client.base_url} cannot be reached: {type(error).__name__}"
            ) from error
        if not response.is_success:
            raise ClusterUnavailable(f"Ray Serve at {self._client.base_url} answers with {response.status_code}")

    async def predict(self, served: ServedVersion, image: bytes, top_k: int, deadline: float) -> list[Prediction]:
        """The image's predictions, most probable first.

        `deadline` is a time of the event loop's clock. Safe to repeat.

        Raises:
            ImageRejected: these bytes are not a usable image.
            NotFound: the version is not in the bucket.
            ModelLoading: no replica came up before the deadline.
            Overloaded: replicas are up and too busy.
            ObjectStoreUnavailable: the replica could not read the version.
            InternalError: the replica failed.
        """
        return await self._held(served, deadline, lambda timeout_s: self._ask(served, image, top_k, timeout_s))

    async def predict_beside(
        self, served: ServedVersion, challenger: int, image: bytes, top_k: int, deadline: float
    ) -> tuple[list[Prediction], "PendingScore | None"]:
        """As `predict`, with what another version on the same trunk says of the image still to come.

        None where the replica knows no challengers. The caller closes the score.
        """
        return await self._held(
            served, deadline, lambda timeout_s: self._ask_beside(served, challenger, image, top_k, timeout_s)
        )

    async def _held(
        self, served: ServedVersion, deadline: float, ask: Callable[[float], Awaitable[Answer | NotUp]]
    ) -> Answer:
        """Asks until there is an answer; `ask` is told how many seconds are left."""
        loop = asyncio.get_running_loop()
        problem = NotUp("no replica took the request")
        wait_s = FIRST_WAIT_S
        crashes = 0
        while (remaining_s := deadline - loop.time()) > 0:
            answer = await self._connected(served, ask, remaining_s)
            if not isinstance(answer, NotUp):
                self._answered.add(served.trunk_id)
                return answer
            problem = answer
            crashes = crashes + 1 if answer.crashed else 0
            if crashes >= MAX_CRASHES:
                raise InternalError(f"{answer.reason} {crashes} times in a row for model {served.model_name!r}")
            # Spread, so that requests held together do not all come back at the same moment.
            await asyncio.sleep(min(wait_s * random.uniform(0.5, 1), max(0, deadline - loop.time())))  # noqa: S311
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        raise self._late(served, problem)

    async def _connected(
        self, served: ServedVersion, ask: Callable[[float], Awaitable[Answer | NotUp]], timeout_s: float
    ) -> Answer | NotUp:
        try:
            async with asyncio.timeout(timeout_s), self._share_of(served.model_name):
                return await ask(timeout_s)
        except (TimeoutError, httpx2.TimeoutException):
            return NotUp(f"no replica answered within {timeout_s:.1f} s", timed_out=True)
        except httpx2.ConnectError:
            return NotUp("Ray Serve cannot be reached")
        except httpx2.TransportError as error:
            return NotUp(f"the connection to Ray Serve broke ({type(error).__name__})")

    async def _ask(self, served: ServedVersion, image: bytes, top_k: int, timeout_s: float) -> list[Prediction] | NotUp:
        return read_answer(await self._client.send(self._request(served, image, top_k, timeout_s)))

    async def _ask_beside(
        self, served: ServedVersion, challenger: int, image: bytes, top_k: int, timeout_s: float
    ) -> "tuple[list[Prediction], PendingScore | None] | NotUp":
        request = self._request(served, image, top_k, timeout_s, {CHALLENGER_HEADER: str(challenger)})
        async with AsyncExitStack() as opened:
            response = await self._client.send(request, stream=True)
            opened.push_async_callback(response.aclose)
            if not response.headers.get("content-type", "").startswith(NDJSON):
                await response.aread()
                answer = read_answer(response)
                return answer if isinstance(answer, NotUp) else (answer, None)
            lines = response.aiter_lines()
            first = await anext(lines, None)
            if first is None:
                return NotUp("a replica ended its answer before it began", crashed=True)
            predictions = _read_predictions(first)
            return predictions, PendingScore(lines, opened.pop_all())

    def _request(
        self,
        served: ServedVersion,
        image: bytes,
        top_k: int,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> httpx2.Request:
        return self._client.build_request(
            "POST",
            f"{trunk_route(served.trunk_id)}/predict",
            params={"model": served.model_name, "version": served.version, "top_k": top_k},
            headers={"content-type": "application/octet-stream", **(headers or {})},
            content=image,
            timeout=timeout_s,
        )

    def _share_of(self, model_name: str) -> asyncio.Semaphore:
        return self._shares.setdefault(model_name, asyncio.Semaphore(MODEL_CONNECTIONS))

    def _late(self, served: ServedVersion, problem: NotUp) -> RetryLater:
        name = f"model {served.model_name!r} version {served.version}"
        if problem.timed_out and served.trunk_id in self._answered:
            return Overloaded(f"{name} did not answer in time: {problem.reason}; try again")
        return ModelLoading(f"{name} is still being loaded: {problem.reason}; try again")
