"""Images of many requests and models on one trunk go to its replicas in common calls."""

import asyncio

import httpx2

from services.inference.courier import MAX_BATCH
from services.inference.predict.operations import IMAGES_AT_ONCE
from services.inference.replicas import CALLS_AT_ONCE, MAX_WAITING
from tests.api.test_predict import client, labels, post, serve, serve_url
from tests.servers.serve_fake import REJECTED, FakeServe

__all__ = ["client", "serve", "serve_url"]


async def test_a_requests_images_share_calls_and_keep_their_order(client: httpx2.AsyncClient, serve: FakeServe) -> None:
    serve.delay_s = 0.1  # so that its calls are under way together
    contents = [f"picture {number}".encode() for number in range(IMAGES_AT_ONCE)]
    contents[5] = REJECTED
    files = [("images", (f"{number}.jpg", content)) for number, content in enumerate(contents)]
    response = await client.post("/v1/models/flowers/predict", files=files, params={"top_k": 1})
    results = response.json()["results"]
    assert [result["image"] for result in results] == [name for _, (name, _) in files]
    assert results[5]["code"] == "image_rejected"
    good = [result["predictions"][0]["label"] for result in results if result["status"] == "ok"]
    assert good == [f"{content.decode()} by flowers v3" for content in contents if content != REJECTED]
    assert sum(serve.batches) == IMAGES_AT_ONCE
    assert 1 < serve.most_in_progress <= CALLS_AT_ONCE


async def test_models_of_a_trunk_share_a_call(client: httpx2.AsyncClient, serve: FakeServe) -> None:
    serve.delay_s = 0.1
    first = [asyncio.create_task(post(client)) for _ in range(CALLS_AT_ONCE)]
    async with asyncio.timeout(10):
        while serve.in_progress < CALLS_AT_ONCE:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    answers = await asyncio.gather(*(post(client, model=model) for model in ("flowers", "birds", "flowers")))
    assert [labels(answer) for answer in answers] == [
        ["rose by flowers v3"],
        ["rose by birds v1"],
        ["rose by flowers v3"],
    ]
    await asyncio.gather(*first)
    assert sorted(serve.batches) == [1] * CALLS_AT_ONCE + [3]


async def test_a_flood_for_one_model_does_not_hold_up_the_others(client: httpx2.AsyncClient, serve: FakeServe) -> None:
    serve.delay_s = 0.1
    files = [("images", ("rose.jpg", b"rose"))] * IMAGES_AT_ONCE
    requests = MAX_WAITING // IMAGES_AT_ONCE
    flood = [asyncio.create_task(client.post("/v1/models/flowers/predict", files=files)) for _ in range(requests)]
    async with asyncio.timeout(10):
        while not serve.in_progress:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert labels(await post(client, model="birds")) == ["rose by birds v1"]
    assert not all(task.done() for task in flood)
    assert {response.status_code for response in await asyncio.gather(*flood)} == {200}
    assert max(serve.batches) == MAX_BATCH
    assert sum(serve.batches) == requests * IMAGES_AT_ONCE + 1
