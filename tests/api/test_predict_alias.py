"""Aliases with two versions through the gateway: who answers, what the shadow costs, and what the metrics say."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from services.contracts.base import utc_now
from services.contracts.predictions import NDJSON
from services.inference.predict.shadows import AT_ONCE, Shadows
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow
from tests.api.test_predict import JPEG, OTHER_TRUNK, labels, serve, serve_url, settings_for, started
from tests.servers.exchange import exchange
from tests.servers.serve_fake import REJECTED, FakeServe

__all__ = ["serve", "serve_url"]

SHADOWED = "rekindle_alias_shadow_images_total"
ANSWERED = "rekindle_alias_image_duration_seconds_count"


@pytest.fixture
async def app(serve_url: str, tmp_path: Path) -> AsyncIterator[FastAPI]:
    async with started(settings_for(tmp_path, serve_url)) as app:
        yield app


@asynccontextmanager
async def connected(app: FastAPI) -> AsyncGenerator[httpx2.AsyncClient, None]:
    transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    async with connected(app) as client:
        yield client


async def point(app: FastAPI, alias: str, version: int, **beside: object) -> None:
    async with app.state.database.transaction() as session:
        now = utc_now()
        session.add(ModelAliasRow(model_name="flowers", alias=alias, version=version, updated_at=now, **beside))


def with_shadow_timeout(app: FastAPI, timeout_s: float) -> None:
    """For how long challengers are waited for, however slow the machine is that runs the tests."""
    inference = app.state.inference
    shadows = Shadows(inference.predictor.replicas, timeout_s=timeout_s)
    app.state.inference = replace(inference, predictor=replace(inference.predictor, shadows=shadows))


async def on_another_trunk(app: FastAPI, serve: FakeServe, version: int) -> None:
    async with app.state.database.transaction() as session:
        row = await session.get(ModelVersionRow, ("flowers", version))
        row.trunk_id = OTHER_TRUNK
    serve.versions["flowers", version] = OTHER_TRUNK
    serve.challenger_version = version


async def ask(client: httpx2.AsyncClient, alias: str, body: bytes = b"rose", request_id: str = "") -> httpx2.Response:
    headers = JPEG | ({"x-request-id": request_id} if request_id else {})
    return await client.post("/v1/models/flowers/predict", params={"alias": alias}, content=body, headers=headers)


async def counted(client: httpx2.AsyncClient, metric: str, label: str, **labels: object) -> Counter[str]:
    """The metric's values by one of its labels, where the others are as given. Aliases are unique to their tests."""
    found: Counter[str] = Counter()
    for line in (await client.get("/metrics")).text.splitlines():
        match = re.fullmatch(rf"{metric}{{(.*)}} (\S+)", line)
        if match is None:
            continue
        values = dict(re.findall(r'(\w+)="([^"]*)"', match[1]))
        if all(values[name] == str(value) for name, value in labels.items()):
            found[values[label]] += int(float(match[2]))
    return found


async def outcomes(client: httpx2.AsyncClient, alias: str, count: int) -> dict[str, int]:
    """What the shadow of the alias gave, once it has had its turn at so many images."""
    async with asyncio.timeout(10):
        while (found := await counted(client, SHADOWED, "outcome", alias=alias)).total() < count:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return dict(found)


# --- split ---


async def test_each_request_is_answered_by_one_of_the_two_and_says_by_which(
    app: FastAPI, client: httpx2.AsyncClient
) -> None:
    await point(app, "halves", 1, split_version=3, split_weight=0.5)
    answers = [(await ask(client, "halves", request_id=f"r{number}")).json() for number in range(40)]
    versions = [answer["version"] for answer in answers]
    assert set(versions) == {1, 3}
    for answer in answers:
        assert answer["results"][0]["predictions"][0]["label"] == f"rose by flowers v{answer['version']}"
    again = [(await ask(client, "halves", request_id=f"r{number}")).json()["version"] for number in range(40)]
    assert again == versions
    assert await counted(client, ANSWERED, "version", alias="halves", role="main") == {"1": 2 * versions.count(1)}
    assert await counted(client, ANSWERED, "version", alias="halves", role="split") == {"3": 2 * versions.count(3)}


async def test_all_images_of_a_request_get_the_same_version_streamed_or_not(app: FastAPI) -> None:
    await point(app, "streamed", 1, split_version=3, split_weight=0.5)
    files = [("images", (f"{number}.jpg", b"rose")) for number in range(5)]
    seen = set()
    for number in range(12):
        headers = {"accept": NDJSON, "x-request-id": f"r{number}"}
        query: dict[str, object] = {"alias": "streamed"}
        async with exchange(app, "/v1/models/flowers/predict", query, files=files, headers=headers) as answer:
            start, *images, _ = await answer.rest()
        seen.add(start["version"])
        assert {image["predictions"][0]["label"] for image in images} == {f"rose by flowers v{start['version']}"}
    assert seen == {1, 3}


async def test_other_requests_leave_no_series(client: httpx2.AsyncClient) -> None:
    assert labels(await ask(client, "production")) == ["rose by flowers v1"]
    assert not await counted(client, ANSWERED, "role", alias="production")


# --- shadow ---


@pytest.mark.parametrize("same_trunk", [True, False])
async def test_a_shadow_is_compared_and_never_answers(
    app: FastAPI, client: httpx2.AsyncClient, serve: FakeServe, same_trunk: bool
) -> None:
    alias = f"compared-{same_trunk}".lower()
    await point(app, alias, 1, shadow_version=3)
    if not same_trunk:
        await on_another_trunk(app, serve, 3)
    serve.opinions = {("flowers", 1): "rose", ("flowers", 3): "rose"}
    assert [labels(await ask(client, alias)) for _ in range(3)] == [["rose"]] * 3
    assert await outcomes(client, alias, 3) == {"agreed": 3}
    serve.opinions["flowers", 3] = "tulip"
    assert labels(await ask(client, alias)) == ["rose"]
    assert await outcomes(client, alias, 4) == {"agreed": 3, "disagreed": 1}
    assert await counted(client, ANSWERED, "version", alias=alias, role="main") == {"1": 4}
    assert await counted(client, ANSWERED, "version", alias=alias, role="shadow") == {"3": 4}
    assert serve.challengers == (4 if same_trunk else 0)
    assert serve.requests.total() == (4 if same_trunk else 8)


@pytest.mark.parametrize("same_trunk", [True, False])
async def test_nobody_waits_for_a_shadow_and_its_budget_bounds_it(
    app: FastAPI, client: httpx2.AsyncClient, serve: FakeServe, same_trunk: bool
) -> None:
    alias = f"slow-{same_trunk}".lower()
    await point(app, alias, 1, shadow_version=3)
    if not same_trunk:
        await on_another_trunk(app, serve, 3)
    with_shadow_timeout(app, 60)
    serve.opinions = {("flowers", 1): "rose", ("flowers", 3): "rose"}
    serve.challenger_gate.clear()
    for _ in range(AT_ONCE + 4):
        assert labels(await ask(client, alias)) == ["rose"]
    assert await outcomes(client, alias, 4) == {"dropped": 4}
    serve.challenger_gate.set()
    assert await outcomes(client, alias, AT_ONCE + 4) == {"dropped": 4, "agreed": AT_ONCE}
    assert labels(await ask(client, alias)) == ["rose"]  # there is room again
    assert await outcomes(client, alias, AT_ONCE + 5) == {"dropped": 4, "agreed": AT_ONCE + 1}


@pytest.mark.parametrize("same_trunk", [True, False])
async def test_a_shadow_that_fails_is_counted_and_not_seen(
    app: FastAPI, client: httpx2.AsyncClient, serve: FakeServe, same_trunk: bool
) -> None:
    alias = f"broken-{same_trunk}".lower()
    await point(app, alias, 1, shadow_version=3)
    if not same_trunk:
        await on_another_trunk(app, serve, 3)
    del serve.versions["flowers", 3]
    assert labels(await ask(client, alias)) == ["rose by flowers v1"]
    assert await outcomes(client, alias, 1) == {"failed": 1}
    assert not await counted(client, ANSWERED, "version", alias=alias, role="shadow")


@pytest.mark.parametrize("same_trunk", [True, False])
async def test_a_shadow_that_takes_too_long_is_given_up(
    app: FastAPI, client: httpx2.AsyncClient, serve: FakeServe, same_trunk: bool
) -> None:
    alias = f"late-{same_trunk}".lower()
    await point(app, alias, 1, shadow_version=3)
    if not same_trunk:
        await on_another_trunk(app, serve, 3)
    with_shadow_timeout(app, 0.1)
    serve.challenger_gate.clear()
    assert labels(await ask(client, alias)) == ["rose by flowers v1"]
    assert await outcomes(client, alias, 1) == {"failed": 1}
    serve.challenger_gate.set()


async def test_an_image_that_cannot_be_used_is_not_scored_and_its_place_is_free_again(
    app: FastAPI, client: httpx2.AsyncClient, serve: FakeServe
) -> None:
    await point(app, "rejected", 1, shadow_version=3)
    serve.opinions = {("flowers", 1): "rose", ("flowers", 3): "rose"}
    for _ in range(AT_ONCE + 1):
        assert (await ask(client, "rejected", REJECTED)).status_code == 422
    assert labels(await ask(client, "rejected")) == ["rose"]
    assert await outcomes(client, "rejected", 1) == {"agreed": 1}


async def test_a_replica_of_an_older_release_answers_without_the_shadow(
    app: FastAPI, client: httpx2.AsyncClient, serve: FakeServe
) -> None:
    await point(app, "older", 1, shadow_version=3)
    serve.knows_challengers = False
    assert labels(await ask(client, "older")) == ["rose by flowers v1"]
    assert await outcomes(client, "older", 1) == {"dropped": 1}


async def test_a_shadow_that_is_gone_is_left_out(app: FastAPI, client: httpx2.AsyncClient, serve: FakeServe) -> None:
    await point(app, "gone", 1, shadow_version=2)
    assert labels(await ask(client, "gone")) == ["rose by flowers v1"]
    assert serve.challengers == 0


async def test_a_gateway_that_stops_does_not_wait_for_shadows(serve_url: str, serve: FakeServe, tmp_path: Path) -> None:
    serve.challenger_gate.clear()
    async with started(settings_for(tmp_path, serve_url)) as app, connected(app) as client:
        await point(app, "stopped", 1, shadow_version=3)
        assert labels(await ask(client, "stopped")) == ["rose by flowers v1"]
        async with asyncio.timeout(2):
            await app.state.inference.predictor.shadows.aclose()
    serve.challenger_gate.set()
