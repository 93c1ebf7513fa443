"""Where a trunk's replicas answer: at ports of their own where the cluster opens such (Ray Serve's direct ingress).

Serve's proxy takes 10 ms of a core for a call of 16 images, which is a tenth of what the images themselves take on two
cores, and all calls go through one process. Where replicas listen as well, Serve's REST API lists their addresses for
load balancers, and the gateway is one. Where it lists none, or none can be reached, there is the proxy.

A replica that is going to end is listed no more and answers for a while yet (`RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_
PERIOD_S`), in which the list has been read anew. Who has the fewest calls of this gateway under way is asked next.
"""

import asyncio
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager

import httpx2
import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from services.runtime.ray_dashboard import dashboard_client

LIST_EVERY_S = 1.0
LOOK_AGAIN_S = 5.0
"""Where none is listed: most clusters open no such ports."""
LIST_TIMEOUT_S = 5.0
AVOID_S = 10.0
"""How long an address is left alone after a call did not reach it."""
MAX_AGE_S = 30.0
"""How long a list is good for while Ray's head tells nothing new: replicas outlive the head, but some day others may
have their ports."""
PROXIES_ROUTE = "/"
"""Of the group in which Serve lists its proxies, where they are the only way."""
HTTP = "HTTP"
"""The protocol among those that replicas listen for."""
PROXY = ""
"""In place of an address: the way through Serve's proxy."""

_log = structlog.get_logger(__name__)


class _Target(BaseModel):
    model_config = ConfigDict(extra="ignore")

    ip: str
    port: int


class _Group(BaseModel):
    model_config = ConfigDict(extra="ignore")

    route_prefix: str
    protocol: str
    targets: Sequence[_Target]


class _Serve(BaseModel):
    model_config = ConfigDict(extra="ignore")

    target_groups: Sequence[_Group] = ()


class ReplicaAddresses:
    """As Serve's REST API lists them. Lives on one event loop; `aclose` it."""

    def __init__(
        self, dashboard_url: str, *, token: str | None = None, transport: httpx2.AsyncBaseTransport | None = None
    ) -> None:
        """`dashboard_url` and `token` are of the Ray cluster. Nothing is asked before `start`."""
        self._client = dashboard_client(dashboard_url, token=token, timeout_s=LIST_TIMEOUT_S, transport=transport)
        self._listed: Mapping[str, Sequence[str]] = {}
        """By route."""
        self._listed_at_s = 0.0
        self._avoided: dict[str, float] = {}
        """Until when, by the event loop's clock."""
        self._calls: Counter[str] = Counter()
        """Under way, by address."""
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins to keep the list up to date."""
        self._watching = asyncio.ensure_future(self._watch())

    async def aclose(self) -> None:
        """Stops, and closes the connection."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._client.aclose()

    @contextmanager
    def for_call(self, route: str) -> Generator[str]:
        """Around a call to one of the route's replicas: gives its address, e.g. `http://10.0.0.7:30001`, or `PROXY`.

        An address to which the call cannot connect is left alone for a while; the error goes on to the caller, who may
        call again.
        """
        now_s = asyncio.get_running_loop().time()
        listed = self._listed.get(route, ()) if now_s - self._listed_at_s <= MAX_AGE_S else ()
        usable = [each for each in listed if self._avoided.get(each, 0.0) <= now_s]
        address = min(usable, key=self._calls.__getitem__, default=PROXY)
        self._calls[address] += 1
        try:
            yield address
        except (httpx2.ConnectError, httpx2.ConnectTimeout):
            self._avoided[address] = now_s + AVOID_S
            raise
        finally:
            self._calls[address] -= 1
            if not self._calls[address]:
                del self._calls[address]

    async def refresh(self) -> None:
        """Asks for the list. Raises `httpx2.HTTPError` or `ValidationError`, and then keeps the old one."""
        asked_at_s = asyncio.get_running_loop().time()
        response = await self._client.get("/api/serve/applications/")
        groups = _Serve.model_validate_json(response.raise_for_status().content).target_groups
        self._listed = {
            group.route_prefix: [_address(each) for each in group.targets]
            for group in groups
            if group.protocol == HTTP and group.route_prefix != PROXIES_ROUTE
        }
        self._listed_at_s = asked_at_s
        known = {address for addresses in self._listed.values() for address in addresses}
        self._avoided = {address: until_s for address, until_s in self._avoided.items() if address in known}

    async def _watch(self) -> None:
        works = True
        while True:
            try:
                await self.refresh()
            except (httpx2.HTTPError, ValidationError) as error:
                if works:
                    _log.info("replica_addresses.unknown", reason=f"{type(error).__name__}: {error}")
                works = False
            else:
                works = True
            await asyncio.sleep(LIST_EVERY_S if works and self._listed else LOOK_AGAIN_S)


def _address(target: _Target) -> str:
    return f"http://[{target.ip}]:{target.port}" if ":" in target.ip else f"http://{target.ip}:{target.port}"
