"""Asking a trunk's replicas through Ray Serve's HTTP proxy, as `contracts/serving.py` says.

Images that are asked for at the same time go in one call (`courier`): the way through gateway, proxy and replica costs
as much as the trunk does.

A replica's answer is final. Everything that means "not up yet" (no connection, no application at the route, a proxy
without replicas) is waited out: the request is held and tried again until its deadline.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import httpx2
from pydantic import ValidationError

from services.contracts.base import StoredContract
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
from services.contracts.predictions import Prediction
from services.contracts.serving import (
    ReplicaAnswers,
    ReplicaError,
    ReplicaPrediction,
    ReplicaQuestion,
    pack,
    trunk_route,
)
from services.inference.courier import Courier, Parcel
from services.inference.predict.queries import ServedVersion

MAX_CONNECTIONS = 256
CALLS_AT_ONCE = 3
"""Calls under way to a trunk, for each replica that it may have: enough that a replica finds the next one waiting."""
MAX_WAITING = 256
"""Images of a trunk that wait in this gateway; more are refused."""
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


Answer = list[Prediction] | NotUp
Kind = TypeVar("Kind", bound=StoredContract)


def read_answer(response: httpx2.Response) -> Answer:
    """What a response of Serve's proxy to one image means.

    Raises what the replica raised (`ImageRejected`, `NotFound`, `Overloaded`, `ObjectStoreUnavailable`), `Overloaded`
    when the proxy's queue is full, and `InternalError` for an answer that the contract does not know.
    """
    if response.status_code == 200:
        return _read(ReplicaPrediction, response).predictions
    return _read_refusal(response)


def read_answers(response: httpx2.Response, count: int) -> list[Answer | Exception]:
    """What a response to a batch of `count` images means for each: as `read_answer`, with its errors as values.

    Raises what concerns the whole batch.
    """
    if response.status_code != 200:
        return [_read_refusal(response)] * count
    answers = _read(ReplicaAnswers, response).answers
    if len(answers) != count:
        raise InternalError(f"a replica gave {len(answers)} answers to {count} images")
    return [each.predictions if isinstance(each, ReplicaPrediction) else _error(each) for each in answers]


def _read(kind: type[Kind], response: httpx2.Response) -> Kind:
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as error:
        raise InternalError(f"a replica answered something else than {kind.__name__}: {error}") from error


def _read_refusal(response: httpx2.Response) -> NotUp:
    try:
        refused = ReplicaError.model_validate_json(response.content)
    except ValidationError:
        return _read_proxy_answer(response)
    raise _error(refused)


def _error(refused: ReplicaError) -> RekindleError:
    if refused.code in _FINAL:
        return _FINAL[refused.code](refused.message, refused.details)
    return InternalError(f"a replica answered {refused.code}: {refused.message}")


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


class Replicas:
    """The trunks' replicas. One per process; `aclose` it."""

    def __init__(
        self, serve_url: str, *, max_replicas: int = 1, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """`serve_url` is where Serve's proxy answers, e.g. `http://127.0.0.1:8000`.

        A trunk has `max_replicas` at most.
        """
        self._client = httpx2.AsyncClient(
            base_url=serve_url,
            transport=transport,
            trust_env=False,
            timeout=HEALTH_TIMEOUT_S,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )
        self._calls_at_once = CALLS_AT_ONCE * max_replicas
        self._couriers: dict[TrunkId, Courier[Answer]] = {}
        self._answered: set[TrunkId] = set()

    async def aclose(self) -> None:
        """Gives up what is under way and closes its connections."""
        for courier in self._couriers.values():
            await courier.aclose()
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
        loop = asyncio.get_running_loop()
        problem = NotUp("no replica took the request")
        wait_s = FIRST_WAIT_S
        crashes = 0
        while deadline > loop.time():
            answer = await self._ask(
                Parcel(served.model_name, served.version, top_k, image, deadline, alone=crashes > 0), served.trunk_id
            )
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

    async def _ask(self, parcel: Parcel, trunk_id: TrunkId) -> Answer:
        courier = self._couriers.get(trunk_id)
        if courier is None:
            courier = self._couriers[trunk_id] = Courier(
                partial(self._send, trunk_id), calls_at_once=self._calls_at_once, max_waiting=MAX_WAITING
            )
        try:
            async with asyncio.timeout_at(parcel.deadline):
                return await courier.ask(parcel)
        except TimeoutError:
            return NotUp("no replica answered in time", timed_out=True)

    async def _send(self, trunk_id: TrunkId, parcels: Sequence[Parcel]) -> Sequence[Answer | Exception]:
        """One call. It lasts as long as anybody may wait for it."""
        remaining_s = max(parcel.deadline for parcel in parcels) - asyncio.get_running_loop().time()
        request = partial(
            self._client.post, headers={"content-type": "application/octet-stream"}, timeout=max(remaining_s, 0.001)
        )
        route = trunk_route(trunk_id)
        try:
            if len(parcels) == 1:
                (only,) = parcels
                query = {"model": only.model, "version": only.version, "top_k": only.top_k}
                return [read_answer(await request(f"{route}/predict", params=query, content=only.image))]
            questions = [
                ReplicaQuestion(model=each.model, version=each.version, top_k=each.top_k, size_bytes=len(each.image))
                for each in parcels
            ]
            body = pack(questions, [each.image for each in parcels])
            return read_answers(await request(f"{route}/predict-batch", content=body), len(parcels))
        except httpx2.TimeoutException:
            answer = NotUp("no replica answered in time", timed_out=True)
        except httpx2.ConnectError:
            answer = NotUp("Ray Serve cannot be reached")
        except httpx2.TransportError as error:
            answer = NotUp(f"the connection to Ray Serve broke ({type(error).__name__})")
        return [answer] * len(parcels)

    def _late(self, served: ServedVersion, problem: NotUp) -> RetryLater:
        name = f"model {served.model_name!r} version {served.version}"
        if problem.timed_out and served.trunk_id in self._answered:
            return Overloaded(f"{name} did not answer in time: {problem.reason}; try again")
        return ModelLoading(f"{name} is still being loaded: {problem.reason}; try again")
