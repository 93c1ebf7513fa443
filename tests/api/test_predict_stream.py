"""Streamed predictions through the gateway: what comes when, how it ends, and what stops it."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
from fastapi import FastAPI
from pydantic import TypeAdapter
from starlette.responses import PlainTextResponse

from services.contracts.predictions import NDJSON, StreamLine
from services.inference.predict.operations import IMAGES_AT_ONCE
from services.inference.predict.streaming import wants_stream
from services.runtime.problems import CLIENT_GONE
from tests.api.test_predict import one_image_a_call, serve, serve_url, settings_for, started
from tests.servers.exchange import Exchange, exchange
from tests.servers.serve_fake import REJECTED, FakeServe, proxy_busy

__all__ = ["one_image_a_call", "serve", "serve_url"]

LINE: TypeAdapter[StreamLine] = TypeAdapter(StreamLine)


@pytest.fixture
async def app(serve_url: str, tmp_path: Path) -> AsyncIterator[FastAPI]:
    async with started(settings_for(tmp_path, serve_url)) as app:
        yield app


def ask(app: FastAPI, *images: bytes, **query: object) -> AbstractAsyncContextManager[Exchange]:
    files = [("images", (f"{number}.jpg", data)) for number, data in enumerate(images)]
    return exchange(app, "/v1/models/flowers/predict", query, files=files, headers={"accept": NDJSON})


def hold(serve: FakeServe, *images: bytes) -> threading.Event:
    gate = threading.Event()
    serve.gates |= dict.fromkeys(images, gate)
    return gate


async def test_each_image_comes_when_it_is_ready_and_says_which_it_is(app: FastAPI, serve: FakeServe) -> None:
    gate = hold(serve, b"rose")
    async with ask(app, b"rose", b"tulip", top_k=1, version=1) as answer:
        assert await answer.line() == {"type": "start", "model_name": "flowers", "version": 1, "image_count": 2}
        assert await answer.line() == {
            "type": "image",
            "index": 1,
            "status": "ok",
            "image": "1.jpg",
            "predictions": [{"label": "tulip by flowers v1", "probability": 0.75, "index": 1}],
        }
        assert (answer.status, answer.headers["content-type"]) == (200, NDJSON)
        gate.set()
        rose, end = await answer.rest()
    assert (rose["index"], rose["predictions"][0]["label"]) == (0, "rose by flowers v1")
    assert end == {"type": "end", "failed_count": 0}


async def test_many_images_all_come_once_and_every_line_has_the_documented_form(app: FastAPI) -> None:
    async with ask(app, *(f"picture {number}".encode() for number in range(40))) as answer:
        lines = await answer.rest()
    assert [LINE.validate_python(line).type for line in lines] == ["start", *["image"] * 40, "end"]
    images = {line["index"]: line["predictions"][0]["label"] for line in lines[1:-1]}
    assert images == {number: f"picture {number} by flowers v3" for number in range(40)}


async def test_images_that_cannot_be_used_are_lines_among_the_others(app: FastAPI) -> None:
    async with ask(app, b"rose", REJECTED) as answer:
        _, *images, end = await answer.rest()
    assert {line["index"]: line["status"] for line in images} == {0: "ok", 1: "error"}
    (bad,) = (line for line in images if line["status"] == "error")
    assert (bad["image"], bad["code"], bad["message"]) == ("1.jpg", "image_rejected", "the file is not an image")
    assert end["failed_count"] == 1


async def test_also_the_only_one(app: FastAPI) -> None:
    async with ask(app, REJECTED) as answer:
        assert [line["type"] for line in await answer.rest()] == ["start", "image", "end"]


# --- when it fails ---


async def test_before_the_first_line_it_is_an_ordinary_problem(app: FastAPI, serve: FakeServe) -> None:
    serve.answers_to = {b"rose": proxy_busy()}
    async with ask(app, b"rose") as answer:
        body = await answer.whole()
    assert (answer.status, answer.headers["content-type"]) == (503, "application/problem+json")
    assert int(answer.headers["retry-after"]) > 0
    assert body["code"] == "overloaded"


@pytest.mark.parametrize(("query", "code"), [({"version": 9}, "not_found"), ({"top_k": 0}, "validation_failed")])
async def test_so_is_a_request_that_makes_no_sense(app: FastAPI, query: dict[str, object], code: str) -> None:
    async with ask(app, b"rose", **query) as answer:
        body = await answer.whole()
    assert body["code"] == code


async def test_too_many_images_are_refused_as_for_json(serve_url: str, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, serve_url, max_images_per_request=3)
    async with started(settings) as app, ask(app, *[b"rose"] * 4) as answer:
        body = await answer.whole()
    assert (answer.status, body["code"]) == (413, "payload_too_large")


@pytest.mark.parametrize(
    ("response", "others", "code", "retry_after_s"),
    [
        (proxy_busy(), [], "overloaded", 2),
        (PlainTextResponse("I'm a teapot, secretly", 418), [b"never"], "internal_error", None),
    ],
)
async def test_after_the_first_line_it_is_the_last_line(
    app: FastAPI,
    serve: FakeServe,
    response: PlainTextResponse,
    others: list[bytes],
    code: str,
    retry_after_s: int | None,
) -> None:
    serve.answers_to = {b"tulip": response}
    gate = hold(serve, b"tulip")
    hold(serve, *others)
    async with ask(app, b"rose", b"tulip", *others) as answer:
        assert [(await answer.line())["type"] for _ in range(2)] == ["start", "image"]
        gate.set()
        (last,) = await answer.rest()
    assert last["type"] == "problem"
    assert (last["problem"]["code"], last["retry_after_s"]) == (code, retry_after_s)
    assert last["problem"]["instance"] == "/v1/models/flowers/predict"
    assert last["problem"]["request_id"] == answer.headers["x-request-id"]
    assert "secretly" not in str(last)


async def test_an_image_that_is_refused_waits_for_another_of_its_request(app: FastAPI, serve: FakeServe) -> None:
    """One of two is refused once: it comes after the other, which kept the request's place."""
    serve.answers_first = [proxy_busy()]
    gate = hold(serve, b"rose", b"tulip")
    async with ask(app, b"rose", b"tulip") as answer:
        await wait_for_requests(serve, 2)
        gate.set()
        start, *images, end = await answer.rest()
    assert start["image_count"] == 2
    assert [line["status"] for line in images] == ["ok", "ok"]
    assert end == {"type": "end", "failed_count": 0}
    assert serve.requests.total() == 3


async def test_where_all_are_refused_so_is_the_request(app: FastAPI, serve: FakeServe) -> None:
    serve.answers_to = {b"rose": proxy_busy(), b"tulip": proxy_busy()}
    gate = hold(serve, b"rose", b"tulip")
    async with ask(app, b"rose", b"tulip") as answer:
        await wait_for_requests(serve, 2)
        gate.set()
        body = await answer.whole()
    assert (answer.status, body["code"]) == (503, "overloaded")
    assert serve.requests.total() == 2


async def test_the_deadline_ends_it_with_a_problem(serve_url: str, serve: FakeServe, tmp_path: Path) -> None:
    hold(serve, b"tulip")
    async with (
        started(settings_for(tmp_path, serve_url, predict_deadline_s=0.5)) as app,
        ask(app, b"rose", b"tulip") as answer,
    ):
        lines = await answer.rest()
    assert [line["type"] for line in lines] == ["start", "image", "problem"]
    assert lines[-1]["problem"]["code"] == "overloaded"


# --- when the client goes away ---


@pytest.mark.parametrize("ready", [[b"first"], []])
async def test_a_client_that_goes_away_stops_the_work(
    app: FastAPI,
    serve: FakeServe,
    ready: list[bytes],
) -> None:
    held = [f"picture {number}".encode() for number in range(3 * IMAGES_AT_ONCE)]
    gate = hold(serve, *held)
    async with ask(app, *ready, *held) as answer:
        for _ in ready:
            assert [(await answer.line())["type"] for _ in range(2)] == ["start", "image"]
        await wait_for_requests(serve, IMAGES_AT_ONCE + len(ready))
        await answer.leave()
        assert answer.task.done()
        assert answer.status == (200 if ready else None)
    gate.set()
    async with ask(app, b"tulip") as answer:
        assert len(await answer.rest()) == 3
    assert serve.requests.total() == IMAGES_AT_ONCE + len(ready) + 1


async def wait_for_requests(serve: FakeServe, count: int) -> None:
    async with asyncio.timeout(10):
        while serve.requests.total() < count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_so_does_one_that_wants_json(app: FastAPI, serve: FakeServe) -> None:
    held = [f"picture {number}".encode() for number in range(3 * IMAGES_AT_ONCE)]
    gate = hold(serve, *held)
    files = [("images", (f"{number}.jpg", data)) for number, data in enumerate(held)]
    async with exchange(app, "/v1/models/flowers/predict", {}, files=files) as answer:
        await wait_for_requests(serve, IMAGES_AT_ONCE)
        await answer.leave()
        assert answer.task.done()
        assert answer.status == CLIENT_GONE
    gate.set()
    async with ask(app, b"tulip") as after:
        assert len(await after.rest()) == 3
    assert serve.requests.total() == IMAGES_AT_ONCE + 1


# --- who gets it ---


@pytest.mark.parametrize(
    ("accept", "streamed"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("application/*", False),
        ("application/x-ndjson", True),
        ("application/x-ndjson, */*", True),
        ("application/json, application/x-ndjson", True),
        ("application/json, application/x-ndjson;q=0.5", False),
        ("application/json;q=0.2, application/x-ndjson; q=0.5", True),
        ("application/x-ndjson;q=0", False),
        ("application/x-ndjson;q=much", False),
    ],
)
def test_only_who_names_it_gets_a_stream(accept: str, streamed: bool) -> None:
    assert wants_stream(accept) is streamed
