"""Predictions from replicas at ports of their own: real servers for them, for the proxy, and for Ray's list."""

import asyncio
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from services.contracts.ids import TrunkId
from services.contracts.serving import trunk_route
from services.inference import direct
from services.local.ports import free_ports
from tests.api.test_predict import JPEG, TRUNK, gateway, labels, settings_for
from tests.servers.serve_fake import FakeServe, running

ROUTE = trunk_route(TrunkId(TRUNK))
TARGET = {"name": "replica", "instance_id": "i-1"}


class Dashboard(FakeServe):
    """Lists the port of a replica for the trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.ports: list[int] = []

    async def __call__(self, request: Request) -> Response:
        assert request.url.path == "/api/serve/applications/"
        targets = [{"ip": "127.0.0.1", "port": port, **TARGET} for port in self.ports]
        return JSONResponse({"target_groups": [{"route_prefix": ROUTE, "protocol": "HTTP", "targets": targets}]})


def serving() -> FakeServe:
    fake = FakeServe()
    fake.deployed = {TRUNK}
    fake.versions = {("flowers", 1): TRUNK, ("flowers", 3): TRUNK}
    return fake


@pytest.fixture
def proxy() -> FakeServe:
    return serving()


@pytest.fixture
def dashboard() -> Dashboard:
    return Dashboard()


@pytest.fixture
def urls(proxy: FakeServe, dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> Generator[dict[str, str]]:
    for name in ("LIST_EVERY_S", "LOOK_AGAIN_S"):
        monkeypatch.setattr(direct, name, 0.02)
    with running(proxy, free_ports(1)[0]) as serve_url, running(dashboard, free_ports(1)[0]) as dashboard_url:
        yield {"serve_url": serve_url, "ray_dashboard_url": dashboard_url}


async def ask(client: httpx2.AsyncClient, image: bytes, **query: str) -> list[str]:
    return labels(await client.post("/v1/models/flowers/predict", params=query, content=image, headers=JPEG))


async def until_asked(client: httpx2.AsyncClient, server: FakeServe) -> None:
    """Asks until the server has been; the list is looked at in between."""
    before = server.requests.total()
    async with asyncio.timeout(10):
        while server.requests.total() == before:
            assert await ask(client, b"rose") == ["rose by flowers v3"]
            await asyncio.sleep(0.01)


async def test_a_replica_that_is_listed_is_asked_and_the_proxy_is_not(
    tmp_path: Path, proxy: FakeServe, dashboard: Dashboard, urls: dict[str, str]
) -> None:
    async with gateway(settings_for(tmp_path, **urls)) as client:
        assert await ask(client, b"rose") == ["rose by flowers v3"]
        assert proxy.requests.total() == 1
        replica, port = serving(), free_ports(1)[0]
        with running(replica, port):
            dashboard.ports = [port]
            await until_asked(client, replica)
            asked = proxy.requests.total()
            assert await ask(client, b"tulip", version="1") == ["tulip by flowers v1"]
            explained = await client.post("/v1/models/flowers/explain", content=b"rose", headers=JPEG)
            assert explained.status_code == 200
            assert proxy.requests.total() == asked
            assert replica.requests[f"{ROUTE}/explain"] == 1


async def test_when_it_is_gone_the_proxy_answers_and_nobody_sees_an_error(
    tmp_path: Path, proxy: FakeServe, dashboard: Dashboard, urls: dict[str, str]
) -> None:
    replica, port = serving(), free_ports(1)[0]
    dashboard.ports = [port]
    async with gateway(settings_for(tmp_path, **urls)) as client:
        with running(replica, port):
            await until_asked(client, replica)
        await until_asked(client, proxy)
