"""While as many images wait as may, requests are turned away before anything is done for them."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from fastapi import FastAPI
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from services.contracts.errors import Overloaded
from services.inference import courier, replicas
from services.inference.main import build_app
from services.inference.predict import admission
from services.inference.predict.queries import ServedVersion
from services.inference.replicas import CALLS_AT_ONCE
from services.runtime.auth import Scope, create_key
from tests.api.test_predict import JPEG, TRUNK, serve, serve_url, settings_for, started
from tests.servers.exchange import Exchange, exchange
from tests.servers.serve_fake import FakeServe

__all__ = ["serve", "serve_url"]

MAX_WAITING = 4
PREDICT = "/v1/models/flowers/predict"
IMAGE = {"content": b"rose", "headers": JPEG}


@asynccontextmanager
async def flooded(app: FastAPI, serve: FakeServe, image: dict = IMAGE) -> AsyncGenerator[list[Exchange], None]:
    """As many images for one model as may wait; answered at the end."""
    gate = serve.gates[b"rose"] = threading.Event()
    async with AsyncExitStack() as asking:
        count = CALLS_AT_ONCE + MAX_WAITING
        flood = [await asking.enter_async_context(exchange(app, PREDICT, {}, **image)) for _ in range(count)]
        async with asyncio.timeout(10):
            while has_room(app, "flowers"):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        yield flood
        gate.set()
        answers = [await answer.whole() for answer in flood]
    assert all("results" in answer for answer in answers)


def has_room(app: FastAPI, model_name: str) -> bool:
    try:
        with app.state.inference.predictor.replicas.place_for(ServedVersion(model_name, 1, TRUNK)):
            return True
    except Overloaded:
        return False


@pytest.fixture(autouse=True)
def little_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "MAX_WAITING", MAX_WAITING)
    monkeypatch.setattr(courier, "MAX_BATCH", 1)  # so that the calls take no more than one each


async def test_who_finds_no_room_is_refused_before_the_image_is_read(
    serve: FakeServe, serve_url: str, tmp_path: Path
) -> None:
    """The body of the refused request never comes; there is room for other models."""
    async with started(settings_for(tmp_path, serve_url)) as app, flooded(app, serve):
        assert has_room(app, "birds")
        async with exchange(app, PREDICT, {"top_k": 3}, sends_body=False, **IMAGE) as refused:
            problem = await refused.whole()
    assert (refused.status, problem["code"], problem["instance"]) == (503, "overloaded", PREDICT)
    assert refused.headers["retry-after"]
    assert problem["request_id"] == refused.headers["x-request-id"]


async def test_a_version_asked_for_by_number_or_alias_is_one_of_the_models(
    serve: FakeServe, serve_url: str, tmp_path: Path
) -> None:
    async with started(settings_for(tmp_path, serve_url)) as app:
        for query in ({"version": 3}, {"alias": "production"}):
            async with exchange(app, PREDICT, query, content=b"tulip", headers=JPEG) as known:
                assert "results" in await known.whole()
        async with flooded(app, serve):
            for query in ({"version": 3}, {"alias": "production"}):
                async with exchange(app, PREDICT, query, sends_body=False, **IMAGE) as refused:
                    assert (await refused.whole())["code"] == "overloaded"
            # It has not been asked for before, so what it means is not in memory: the application refuses it.
            async with exchange(app, PREDICT, {"version": 1}, **IMAGE) as unknown:
                assert (await unknown.whole())["code"] == "overloaded"


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"version": "x"}, "validation_failed"),
        ({"version": 3, "alias": "production"}, "validation_failed"),
        ({"version": 7}, "not_found"),
    ],
)
async def test_a_request_that_is_wrong_is_told_so_all_the_same(
    serve: FakeServe, serve_url: str, tmp_path: Path, query: dict, code: str
) -> None:
    async with (
        started(settings_for(tmp_path, serve_url)) as app,
        flooded(app, serve),
        exchange(app, PREDICT, query, **IMAGE) as wrong,
    ):
        assert (await wrong.whole())["code"] == code


async def test_a_stranger_learns_nothing_of_it(serve: FakeServe, serve_url: str, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, serve_url, require_api_keys=True)
    database = build_app(settings).state.database
    await database.migrate()
    key = (await create_key(database, "phone", [Scope.PREDICT])).plaintext
    await database.close()
    known = {"content": b"rose", "headers": JPEG | {"authorization": f"Bearer {key}"}}
    async with started(settings) as app, flooded(app, serve, known):
        async with exchange(app, PREDICT, {}, sends_body=False, **known) as refused:
            assert (await refused.whole())["code"] == "overloaded"
        async with exchange(app, PREDICT, {}, **IMAGE) as stranger:
            assert (await stranger.whole())["code"] == "unauthenticated"


async def test_it_is_counted_like_any_answer_of_the_route(serve: FakeServe, serve_url: str, tmp_path: Path) -> None:
    labels = {"method": "POST", "route": "/v1/models/{model_name}/predict", "service": "inference", "status": "503"}

    def count() -> float:
        return REGISTRY.get_sample_value("rekindle_http_requests_total", labels) or 0

    before = count()
    async with (
        started(settings_for(tmp_path, serve_url)) as app,
        flooded(app, serve),
        exchange(app, PREDICT, {}, sends_body=False, **IMAGE) as refused,
    ):
        await refused.whole()
    assert count() == before + 1


async def test_what_is_refused_shares_a_line_of_the_log(
    serve: FakeServe, serve_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "LOGGED_EVERY_S", 0.2)
    with capture_logs() as lines:
        async with started(settings_for(tmp_path, serve_url)) as app, flooded(app, serve):
            for _ in range(2):
                async with exchange(app, PREDICT, {}, sends_body=False, **IMAGE) as refused:
                    await refused.whole()
            async with asyncio.timeout(10):
                while not any(line["event"] == "predict.refused" for line in lines):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
    assert [line for line in lines if line["event"] == "predict.refused"] == [
        {"event": "predict.refused", "log_level": "warning", "count": 2, "within_s": 0.2}
    ]
    assert not [line for line in lines if line["event"] == "http.request" and line["status"] == 503]
