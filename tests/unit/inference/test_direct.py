"""Which replica a call goes to, and what happens where none is listed or none is there."""

from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from services.inference import direct
from services.inference.direct import PROXY, ReplicaAddresses

FIRST, SECOND = "http://10.0.0.7:30001", "http://10.0.0.8:30000"
TARGETS = [{"ip": "10.0.0.7", "port": 30001, "name": "a"}, {"ip": "10.0.0.8", "port": 30000, "name": "b"}]


def group(route: str, targets: list[dict[str, Any]], protocol: str = "HTTP") -> dict[str, Any]:
    return {"route_prefix": route, "protocol": protocol, "targets": targets, "app_name": "trunk"}


class Dashboard:
    """Ray's, as far as the list goes."""

    def __init__(self) -> None:
        self.groups = [group("/trunks/a", TARGETS), group("/trunks/a", [{"ip": "10.0.0.7", "port": 4}], "gRPC")]
        self.status = 200
        self.tokens: list[str | None] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        assert request.url.path == "/api/serve/applications/"
        self.tokens.append(request.headers.get("authorization"))
        return httpx2.Response(self.status, json={"target_groups": self.groups, "applications": {}})


@pytest.fixture
def dashboard() -> Dashboard:
    return Dashboard()


@pytest.fixture
async def addresses(dashboard: Dashboard) -> AsyncGenerator[ReplicaAddresses]:
    listed = ReplicaAddresses("http://ray:8265", token="secret", transport=httpx2.MockTransport(dashboard))
    await listed.refresh()
    yield listed
    await listed.aclose()


async def test_who_has_the_fewest_calls_is_asked(addresses: ReplicaAddresses, dashboard: Dashboard) -> None:
    with addresses.for_call("/trunks/a") as one, addresses.for_call("/trunks/a") as other:
        assert {one, other} == {FIRST, SECOND}
    with addresses.for_call("/trunks/a") as one:
        for _ in range(3):
            with addresses.for_call("/trunks/a") as other:
                assert other != one
    assert dashboard.tokens == ["Bearer secret"]


async def test_a_route_that_is_not_listed_is_the_proxys(addresses: ReplicaAddresses, dashboard: Dashboard) -> None:
    with addresses.for_call("/trunks/b") as address:
        assert address == PROXY
    # As Serve lists them where replicas have no ports of their own.
    dashboard.groups = [group("/", TARGETS)]
    await addresses.refresh()
    with addresses.for_call("/trunks/a") as address:
        assert address == PROXY


def fail(addresses: ReplicaAddresses, error: httpx2.TransportError) -> str:
    """The address of a call that ends with the error."""
    call = addresses.for_call("/trunks/a")
    address = call.__enter__()
    assert not call.__exit__(type(error), error, None), "the error is the caller's"
    return address


@pytest.mark.parametrize("error", [httpx2.ConnectError("refused"), httpx2.ConnectTimeout("nobody")])
async def test_what_cannot_be_reached_is_left_alone_for_a_while(
    addresses: ReplicaAddresses, error: httpx2.TransportError
) -> None:
    assert {fail(addresses, error), fail(addresses, error)} == {FIRST, SECOND}
    with addresses.for_call("/trunks/a") as address:
        assert address == PROXY
    await addresses.refresh()
    with addresses.for_call("/trunks/a") as address:
        assert address == PROXY, "it was listed all the time"


async def test_it_is_asked_again_after_that(addresses: ReplicaAddresses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "AVOID_S", 0.0)
    fail(addresses, httpx2.ConnectError("refused"))
    with addresses.for_call("/trunks/a") as one, addresses.for_call("/trunks/a") as other:
        assert {one, other} == {FIRST, SECOND}


async def test_a_call_that_breaks_leaves_the_address_to_others(addresses: ReplicaAddresses) -> None:
    failed = fail(addresses, httpx2.ReadError("reset"))
    with addresses.for_call("/trunks/a") as one, addresses.for_call("/trunks/a") as other:
        assert failed in (one, other)


async def test_the_proxy_is_asked_again_at_once(addresses: ReplicaAddresses) -> None:
    with pytest.raises(httpx2.ConnectError), addresses.for_call("/trunks/b"):
        raise httpx2.ConnectError("refused")
    with addresses.for_call("/trunks/b") as address:
        assert address == PROXY


def _unavailable(dashboard: Dashboard) -> None:
    dashboard.status = 503


def _of_another_form(dashboard: Dashboard) -> None:
    dashboard.groups = [{"route_prefix": "/trunks/a"}]


@pytest.mark.parametrize(
    ("spoil", "error"), [(_unavailable, httpx2.HTTPStatusError), (_of_another_form, ValidationError)]
)
async def test_what_is_known_is_kept_while_nothing_is_told(
    addresses: ReplicaAddresses, dashboard: Dashboard, spoil: Callable[[Dashboard], None], error: type[Exception]
) -> None:
    spoil(dashboard)
    with pytest.raises(error):
        await addresses.refresh()
    with addresses.for_call("/trunks/a") as address:
        assert address in (FIRST, SECOND)


async def test_an_old_list_is_not_used(addresses: ReplicaAddresses, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "MAX_AGE_S", -1.0)
    with addresses.for_call("/trunks/a") as address:
        assert address == PROXY


async def test_an_address_of_version_6(addresses: ReplicaAddresses, dashboard: Dashboard) -> None:
    dashboard.groups = [group("/trunks/a", [{"ip": "fd00::7", "port": 30001}])]
    await addresses.refresh()
    with addresses.for_call("/trunks/a") as address:
        assert address == "http://[fd00::7]:30001"
