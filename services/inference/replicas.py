"""Asking a trunk's replicas over HTTP, at their own ports or through Ray Serve's proxy, as `contracts/serving.py` says.

A replica's answer is final. Everything that means "not up yet" (no connection, no application at the route, a proxy
without replicas) is waited out: the request is held and tried again until its deadline.

Images that are asked for at the same time go in one call (`courier`): the way through gateway, proxy and replica costs
as much as the trunk does. Those of an alias with a challenger go one by one, each with the challenger's score behind.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, AsyncExitStack
from functools import partial
from typing import TypeVar
from weakref import WeakValueDictionary

import httpx2
from pydantic import ValidationError

from services.contracts.errors import ClusterUnavailable, InternalError, ModelLoading, Overloaded, RetryLater
from services.contracts.explanations import ExplanationFormat
from services.contracts.ids import TrunkId
from services.contracts.predictions import NDJSON, Prediction
from services.contracts.serving import CHALLENGER_HEADER, ReplicaQuestion, ReplicaScore, pack, trunk_route
from services.inference.courier import Courier, Parcel, give_up_place
from services.inference.direct import ReplicaAddresses
from services.inference.predict.queries import ServedVersion
from services.inference.replica_answers import (
    ExplainedMap,
    ExplainedPicture,
    ImageAnswer,
    NotUp,
    read_answer,
    read_answers,
    read_explanation,
    read_predictions,
)

Answer = TypeVar("Answer")

MAX_CONNECTIONS = 512
CALLS_AT_ONCE = 2
"""Calls under way to a trunk, for each replica that it may have: enough that a replica finds the next one waiting."""
MAX_WAITING = 256
"""Images of a trunk that wait in this gateway at most; more are refused, and fewer where they are answered slowly."""
MODEL_CONNECTIONS = 128
"""Images of one model that are asked for with a challenger at a time; more wait for each other, not for the connections
of the rest."""
EXPLANATIONS_AT_ONCE = 32
"""That this gateway waits for; more are refused."""
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 1.0
MAX_CRASHES = 3
CRASHING_S = 5.0
"""Answers with status 500 are put down to a replica or proxy that starts, or died with the request; so many in a row,
over so long, are a fault."""
HEALTH_TIMEOUT_S = 3.0
CONNECT_S = 3.0

_BODY = {"content-type": "application/octet-stream"}


def _within(timeout_s: float) -> httpx2.Timeout:
    return httpx2.Timeout(timeout_s, connect=min(timeout_s, CONNECT_S))


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

    def __init__(
        self,
        serve_url: str,
        addresses: ReplicaAddresses,
        *,
        max_replicas: int = 1,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        """`serve_url` is where Serve's proxy answers, e.g. `http://127.0.0.1:8000`; `addresses` are the replicas' own.

        A trunk has `max_replicas` at most.
        """
        self._addresses = addresses
        self._client = httpx2.AsyncClient(
            base_url=serve_url,
            transport=transport,
            trust_env=False,
            timeout=HEALTH_TIMEOUT_S,
            limits=httpx2.Limits(max_connections=MAX_CONNECTIONS, max_keepalive_connections=MAX_CONNECTIONS),
        )
        self._calls_at_once = CALLS_AT_ONCE * max_replicas
        self._couriers: dict[TrunkId, Courier[ImageAnswer]] = {}
        self._answered: set[TrunkId] = set()
        self._explanations = 0
        """That are waited for."""
        self._shares: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By model; each lasts as long as somebody holds it or waits for it."""

    async def aclose(self) -> None:
        """Gives up what is under way and closes its connections."""
        for courier in self._couriers.values():
            await courier.aclose()
        await self._client.aclose()
        await self._addresses.aclose()

    def waiting_count(self) -> int:
        """Images that wait in this gateway for a call to a replica."""
        return sum(courier.waiting_count for courier in self._couriers.values())

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

    def place_for(self, served: ServedVersion) -> AbstractContextManager[None]:
        """Around a request that is going to ask about an image: keeps a place for it. Raises `Overloaded` when entered
        where there is none."""
        return self._courier_of(served.trunk_id).place_for(served.model_name)

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
        parcel = Parcel(served.model_name, served.version, top_k, image, deadline)
        courier = self._courier_of(served.trunk_id)

        async def ask(_timeout_s: float, crashed: bool) -> ImageAnswer:
            # What may have brought a replica down shall not do so to the images of others.
            return await (courier.ask_alone(parcel) if crashed else courier.ask(parcel))

        return await self._held(served, deadline, ask)

    async def predict_beside(
        self, served: ServedVersion, challenger: int, image: bytes, top_k: int, deadline: float
    ) -> tuple[list[Prediction], "PendingScore | None"]:
        """As `predict`, with what another version on the same trunk says of the image still to come.

        None where the replica knows no challengers. The caller closes the score.
        """
        give_up_place()  # it goes past those that wait
        return await self._held(
            served, deadline, lambda timeout_s, _: self._ask_beside(served, challenger, image, top_k, timeout_s)
        )

    async def explain(
        self, served: ServedVersion, image: bytes, label: str | None, form: ExplanationFormat, deadline: float
    ) -> ExplainedMap | ExplainedPicture:
        """Where in the image the evidence for the label lies; None: for the most probable one.

        Raises as `predict` does, and `LabelUnknown`; `Overloaded` also where many explanations are waited for.
        """
        if self._explanations >= EXPLANATIONS_AT_ONCE:
            raise Overloaded(f"{self._explanations} explanations are being waited for, which is the limit; try again")
        self._explanations += 1
        try:
            return await self._held(
                served, deadline, lambda timeout_s, _: self._ask_why(served, image, label, form, timeout_s)
            )
        finally:
            self._explanations -= 1

    async def _held(
        self, served: ServedVersion, deadline: float, ask: Callable[[float, bool], Awaitable[Answer | NotUp]]
    ) -> Answer:
        """Asks until there is an answer; `ask` is told how many seconds are left, and whether a replica or proxy may
        have died with the try before."""
        loop = asyncio.get_running_loop()
        problem = NotUp("no replica took the request")
        wait_s = FIRST_WAIT_S
        crashes, crashing_since_s = 0, 0.0
        while (remaining_s := deadline - loop.time()) > 0:
            answer = await self._connected(ask(remaining_s, crashes > 0), remaining_s)
            if not isinstance(answer, NotUp):
                self._answered.add(served.trunk_id)
                return answer
            problem = answer
            crashes = crashes + 1 if answer.crashed else 0
            if crashes == 1:
                crashing_since_s = loop.time()
            if crashes >= MAX_CRASHES and loop.time() - crashing_since_s >= CRASHING_S:
                raise InternalError(f"{answer.reason} {crashes} times in a row for model {served.model_name!r}")
            # Spread, so that requests held together do not all come back at the same moment.
            await asyncio.sleep(min(wait_s * random.uniform(0.5, 1), max(0, deadline - loop.time())))  # noqa: S311
            wait_s = min(2 * wait_s, LONGEST_WAIT_S)
        raise self._late(served, problem)

    async def _connected(self, asking: Awaitable[Answer | NotUp], timeout_s: float) -> Answer | NotUp:
        try:
            async with asyncio.timeout(timeout_s):
                return await asking
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            return NotUp("Ray Serve cannot be reached")
        except (TimeoutError, httpx2.TimeoutException):
            return NotUp(f"no replica answered within {timeout_s:.1f} s", timed_out=True)
        except httpx2.TransportError as error:
            return NotUp(f"the connection to Ray Serve broke ({type(error).__name__})", crashed=True)

    def _courier_of(self, trunk_id: TrunkId) -> Courier[ImageAnswer]:
        courier = self._couriers.get(trunk_id)
        if courier is None:
            courier = self._couriers[trunk_id] = Courier(
                partial(self._send, trunk_id), calls_at_once=self._calls_at_once, max_waiting=MAX_WAITING
            )
        return courier

    async def _send(self, trunk_id: TrunkId, parcels: Sequence[Parcel]) -> Sequence[ImageAnswer | Exception]:
        """One call. It lasts as long as anybody may wait for it."""
        timeout_s = max(0.001, max(each.deadline for each in parcels) - asyncio.get_running_loop().time())
        questions = [
            ReplicaQuestion(model=each.model, version=each.version, top_k=each.top_k, size_bytes=len(each.image))
            for each in parcels
        ]
        body = pack(questions, [each.image for each in parcels])
        return read_answers(await self._post(trunk_id, "predict-batch", {}, body, timeout_s), len(parcels))

    async def _ask_beside(
        self, served: ServedVersion, challenger: int, image: bytes, top_k: int, timeout_s: float
    ) -> "tuple[list[Prediction], PendingScore | None] | NotUp":
        route = trunk_route(served.trunk_id)
        async with self._share_of(served.model_name), AsyncExitStack() as opened:
            address = opened.enter_context(self._addresses.for_call(route))
            request = self._client.build_request(
                "POST",
                f"{address}{route}/predict",
                params={"model": served.model_name, "version": served.version, "top_k": top_k},
                headers={**_BODY, CHALLENGER_HEADER: str(challenger)},
                content=image,
                timeout=_within(timeout_s),
            )
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
            predictions = read_predictions(first)
            return predictions, PendingScore(lines, opened.pop_all())

    async def _ask_why(
        self, served: ServedVersion, image: bytes, label: str | None, form: ExplanationFormat, timeout_s: float
    ) -> ExplainedMap | ExplainedPicture | NotUp:
        query = {"model": served.model_name, "version": str(served.version), "format": form}
        if label is not None:
            query["label"] = label
        return read_explanation(await self._post(served.trunk_id, "explain", query, image, timeout_s))

    async def _post(
        self, trunk_id: TrunkId, call: str, query: Mapping[str, str], body: bytes, timeout_s: float
    ) -> httpx2.Response:
        """A replica's whole answer to one call."""
        route = trunk_route(trunk_id)
        with self._addresses.for_call(route) as address:
            return await self._client.post(
                f"{address}{route}/{call}", params=query, headers=_BODY, content=body, timeout=_within(timeout_s)
            )

    def _share_of(self, model_name: str) -> asyncio.Semaphore:
        return self._shares.setdefault(model_name, asyncio.Semaphore(MODEL_CONNECTIONS))

    def _late(self, served: ServedVersion, problem: NotUp) -> RetryLater:
        name = f"model {served.model_name!r} version {served.version}"
        if problem.timed_out and served.trunk_id in self._answered:
            return Overloaded(f"{name} did not answer in time: {problem.reason}; try again")
        return ModelLoading(f"{name} is still being loaded: {problem.reason}; try again")
