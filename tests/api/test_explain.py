"""Explanations through the gateway: real HTTP to a server that speaks the replicas' contract, a real database."""

import asyncio
import threading

import httpx2
import pytest

from services.inference.replicas import EXPLANATIONS_AT_ONCE
from tests.api.test_predict import JPEG, client, problem, serve, serve_url
from tests.servers.serve_fake import HEAT_MAP, REJECTED, FakeServe, no_replica, proxy_busy, replica_died

__all__ = ["client", "serve", "serve_url"]


async def explain(client: httpx2.AsyncClient, body: bytes = b"rose", accept: str = "*/*", **query: object):
    headers = JPEG | {"accept": accept}
    return await client.post("/v1/models/flowers/explain", params=query, content=body, headers=headers)


async def test_the_array_says_what_it_is_of(client: httpx2.AsyncClient) -> None:
    response = await explain(client, format="json")
    assert response.status_code == 200, response.text
    assert response.json() == {
        "model_name": "flowers",
        "version": 3,
        "image": "image",
        "label": "rose by flowers v3",
        "probability": 0.75,
        "index": 1,
        "height": 2,
        "width": 2,
        "map": HEAT_MAP,
    }


async def test_a_label_a_version_and_an_alias_can_be_named(client: httpx2.AsyncClient) -> None:
    other = (await explain(client, format="json", label="other", version=1)).json()
    assert (other["version"], other["label"], other["probability"]) == (1, "other", 0.25)
    assert (await explain(client, format="json", alias="production")).json()["version"] == 1


async def test_the_pictures_headers_say_what_it_shows(client: httpx2.AsyncClient) -> None:
    response = await explain(client, "röslein".encode())
    assert (response.status_code, response.headers["content-type"]) == (200, "image/png")
    assert response.content == "röslein".encode()
    names = ("x-rekindle-version", "x-rekindle-label", "x-rekindle-probability")
    assert [response.headers[name] for name in names] == ["3", "r%C3%B6slein%20by%20flowers%20v3", "0.750000"]


@pytest.mark.parametrize(
    ("accept", "query", "answered"),
    [
        ("application/json", {}, "application/json"),
        ("application/json;q=0.5, image/png", {}, "image/png"),
        ("image/*, */*;q=0.8", {}, "image/png"),
        ("application/json", {"format": "png"}, "image/png"),
    ],
)
async def test_the_answer_has_the_form_that_is_asked_for(
    client: httpx2.AsyncClient, accept: str, query: dict, answered: str
) -> None:
    assert (await explain(client, accept=accept, **query)).headers["content-type"] == answered


async def test_a_file_of_a_form_is_named(client: httpx2.AsyncClient) -> None:
    files = [("images", ("a.jpg", b"rose"))]
    response = await client.post("/v1/models/flowers/explain?format=json", files=files)
    assert response.json()["image"] == "a.jpg"


@pytest.mark.parametrize(
    ("body", "query", "status", "code", "named"),
    [
        (b"rose", {"label": "pink"}, 422, "label_unknown", "it has 'other'"),
        (REJECTED, {}, 422, "image_rejected", "not an image"),
        (b"rose", {"version": 9}, 404, "not_found", "no version 9"),
        (b"rose", {"version": 1, "alias": "production"}, 422, "validation_failed", "not both"),
        (b"rose", {"format": "gif"}, 422, "validation_failed", "format"),
        (b"", {}, 400, "invalid_request", "empty"),
    ],
)
async def test_what_cannot_be_explained(
    client: httpx2.AsyncClient, body: bytes, query: dict, status: int, code: str, named: str
) -> None:
    assert named in problem(await explain(client, body, **query), status, code)["detail"]


async def test_images_are_explained_one_by_one(client: httpx2.AsyncClient, serve: FakeServe) -> None:
    files = [("images", (name, b"rose")) for name in ("a.jpg", "b.jpg")]
    response = await client.post("/v1/models/flowers/explain", files=files)
    assert "one image" in problem(response, 422, "validation_failed")["detail"]
    assert not serve.requests


async def test_a_lost_replica_is_not_the_clients_business(client: httpx2.AsyncClient, serve: FakeServe) -> None:
    serve.answers_first = [no_replica(), replica_died()]
    assert (await explain(client)).status_code == 200
    serve.answers_first = [proxy_busy()]
    problem(await explain(client), 503, "overloaded")


async def test_more_explanations_than_can_be_waited_for_are_refused_and_predictions_are_not(
    client: httpx2.AsyncClient, serve: FakeServe
) -> None:
    gate = serve.gates[b"rose"] = threading.Event()
    waiting = [asyncio.create_task(explain(client)) for _ in range(EXPLANATIONS_AT_ONCE)]
    async with asyncio.timeout(10):
        while serve.in_progress < EXPLANATIONS_AT_ONCE:  # noqa: ASYNC110 - it is set by another thread
            await asyncio.sleep(0.005)
    refused = await explain(client, b"tulip")
    problem(refused, 503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    predicted = await client.post("/v1/models/flowers/predict", content=b"tulip", headers=JPEG)
    assert predicted.status_code == 200
    gate.set()
    assert {(await task).status_code for task in waiting} == {200}
    assert (await explain(client, b"tulip")).status_code == 200


async def test_metrics_count_explanations_by_version_and_format(client: httpx2.AsyncClient) -> None:
    name = 'rekindle_explanation_duration_seconds_count{format="png",model="flowers",version="1"}'

    async def counted() -> float:
        lines = (await client.get("/metrics")).text.splitlines()
        return sum(float(line.removeprefix(name)) for line in lines if line.startswith(name))

    before = await counted()
    await explain(client, version=1)
    assert await counted() == before + 1


async def test_the_document_describes_both_answers(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/models/{model_name}/explain"]["post"]
    assert operation["operationId"] == "explain"
    assert set(operation["responses"]["200"]["content"]) == {"application/json", "image/png"}
    assert set(operation["requestBody"]["content"]) == {
        "multipart/form-data",
        "application/json",
        "application/octet-stream",
    }
