"""What a replica answers, with an engine whose features are easy to work out and models in a local bucket."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from starlette.requests import Request

from ray_cluster.serve.service import CHALLENGERS_AT_ONCE, STUCK_AFTER_S, TrunkService
from ray_cluster.vision.tails import Tail
from services.contracts import names
from services.contracts.errors import InternalError
from services.contracts.predictions import NDJSON
from services.contracts.serving import (
    CHALLENGER_HEADER,
    ReplicaAnswers,
    ReplicaError,
    ReplicaPrediction,
    ReplicaQuestion,
    ReplicaScore,
    pack,
)
from services.runtime.objects import ObjectStore, open_store
from tests.servers.exchange import Exchange, exchange
from tests.servers.published import made_up_trunk, publish, random_tail

FEATURES = 3
TRUNK = made_up_trunk(FEATURES)
COLOURS = ["red", "green", "blue"]
BY_COLOUR = Tail(np.eye(3, dtype=np.float32) / 8, np.zeros(3, np.float32))


def app_of(service: TrunkService) -> Callable[..., Awaitable[None]]:
    """The service as Serve runs it."""

    async def app(scope: dict, receive: object, send: object) -> None:
        response = await service.handle(Request(scope, receive))
        await response(scope, receive, send)

    return app


class MeanColour:
    """An engine: each image's mean red, green and blue. Can be held to let a queue build up."""

    name = "mean"
    version = "1"
    feature_dim = FEATURES
    batch_size = 1

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.started = threading.Event()
        self.open = threading.Event()
        self.open.set()

    def features(self, images_BHWC: np.ndarray) -> np.ndarray:
        self.batches.append(len(images_BHWC))
        self.started.set()
        assert self.open.wait(10)
        return images_BHWC.mean(axis=(1, 2)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = open_store(tmp_path.as_uri())
    publish(store, TRUNK, "colours", 1, BY_COLOUR, COLOURS)
    publish(store, TRUNK, "colours", 2, BY_COLOUR, ["rot", "grün", "blau"])
    publish(store, made_up_trunk(FEATURES, trunk_id="b" * 64), "elsewhere", 1, BY_COLOUR, COLOURS)
    return store


@pytest.fixture
def engine() -> MeanColour:
    return MeanColour()


@pytest.fixture
def service(store: ObjectStore, engine: MeanColour) -> TrunkService:
    return TrunkService(store, TRUNK, [engine], tail_cache_bytes=1_000_000, max_waiting=4)


@pytest.fixture
async def client(service: TrunkService) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app_of(service))
    async with httpx2.AsyncClient(transport=transport, base_url=f"http://replica/trunks/{TRUNK.trunk_id}") as client:
        yield client


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), colour).save(buffer, "PNG")
    return buffer.getvalue()


async def ask(client: httpx2.AsyncClient, image: bytes, **query: object) -> httpx2.Response:
    return await client.post("/predict", params={"model": "colours", "version": 1} | query, content=image)


def best(response: httpx2.Response) -> str:
    assert response.status_code == 200, response.text
    return ReplicaPrediction.model_validate_json(response.content).predictions[0].label


async def test_labels_come_most_probable_first_with_their_index(client: httpx2.AsyncClient) -> None:
    response = await ask(client, picture((10, 200, 100)), top_k=2)
    predictions = ReplicaPrediction.model_validate_json(response.content).predictions
    expected = BY_COLOUR.probabilities(np.array([[10, 200, 100]], np.float32))[0]
    assert [(p.label, p.index) for p in predictions] == [("green", 1), ("blue", 2)]
    assert [p.probability for p in predictions] == pytest.approx([expected[1], expected[2]], abs=1e-7)


async def test_more_labels_than_there_are_is_all_of_them(client: httpx2.AsyncClient) -> None:
    response = await ask(client, picture((1, 2, 3)), top_k=1000)
    assert len(response.json()["predictions"]) == 3


async def test_images_for_different_models_share_a_batch_and_keep_their_own_answers(
    client: httpx2.AsyncClient, engine: MeanColour
) -> None:
    await ask(client, picture((0, 0, 0)), version=2)  # both tails are in memory
    engine.started.clear()
    engine.open.clear()
    first = asyncio.create_task(ask(client, picture((255, 0, 0))))
    assert await asyncio.to_thread(engine.started.wait, 10)
    colours = [(0, 255, 0), (0, 0, 255), (255, 0, 0)]
    rest = [asyncio.create_task(ask(client, picture(colour), version=2)) for colour in colours[:2]]
    rest += [asyncio.create_task(ask(client, picture(colours[2])))]
    await asyncio.wait(rest, timeout=0.2)
    engine.open.set()
    assert [best(await task) for task in (first, *rest)] == ["red", "grün", "blau", "red"]
    assert engine.batches[-1] == 3


async def test_it_tells_of_its_batches_and_of_what_it_has_in_memory(store: ObjectStore, engine: MeanColour) -> None:
    batches: list[tuple[int, float]] = []
    service = TrunkService(
        store, TRUNK, [engine], tail_cache_bytes=1_000_000, max_waiting=4, on_batch=lambda *batch: batches.append(batch)
    )
    transport = httpx2.ASGITransport(app=app_of(service))
    async with httpx2.AsyncClient(transport=transport, base_url=f"http://replica/trunks/{TRUNK.trunk_id}") as client:
        assert best(await ask(client, picture((9, 0, 0)))) == "red"
        assert best(await ask(client, picture((9, 0, 0)), version=2)) == "rot"
    assert [images for images, _ in batches] == [1, 1]
    assert all(seconds > 0 for _, seconds in batches)
    standing = service.standing()
    assert (standing.waiting, standing.heads) == (0, 2)
    assert standing.head_bytes > 2 * BY_COLOUR.kernel_DK.nbytes


async def test_a_bad_image_fails_alone(client: httpx2.AsyncClient, engine: MeanColour) -> None:
    await ask(client, picture((0, 0, 0)))
    engine.started.clear()
    engine.open.clear()
    first = asyncio.create_task(ask(client, picture((255, 0, 0))))
    assert await asyncio.to_thread(engine.started.wait, 10)
    bad, good = asyncio.create_task(ask(client, b"no image")), asyncio.create_task(ask(client, picture((0, 255, 0))))
    await asyncio.wait([bad, good], timeout=0.2)
    engine.open.set()
    assert [best(await task) for task in (first, good)] == ["red", "green"]
    refused = await bad
    assert refused.status_code == 422
    error = ReplicaError.model_validate_json(refused.content)
    assert (error.code, error.details["reason"]) == ("image_rejected", "not_an_image")


async def test_an_empty_body_is_a_rejected_image(client: httpx2.AsyncClient) -> None:
    response = await ask(client, b"")
    assert (response.status_code, response.json()["details"]["reason"]) == (422, "zero_bytes")


async def test_a_full_queue_is_a_503_with_retry_after(client: httpx2.AsyncClient, engine: MeanColour) -> None:
    await ask(client, picture((0, 0, 0)))
    engine.started.clear()
    engine.open.clear()
    first = asyncio.create_task(ask(client, picture((255, 0, 0))))
    assert await asyncio.to_thread(engine.started.wait, 10)
    waiting = [asyncio.create_task(ask(client, picture((255, 0, 0)))) for _ in range(4)]
    await asyncio.wait(waiting, timeout=0.2)
    refused = await ask(client, picture((255, 0, 0)))
    assert (refused.status_code, refused.json()["code"]) == (503, "overloaded")
    assert int(refused.headers["retry-after"]) > 0
    engine.open.set()
    assert [best(await task) for task in (first, *waiting)] == ["red"] * 5


async def test_a_model_that_floods_the_queue_is_refused_and_not_the_others(
    client: httpx2.AsyncClient, engine: MeanColour, store: ObjectStore
) -> None:
    publish(store, TRUNK, "other", 1, BY_COLOUR, ["R", "G", "B"])
    for model in ("colours", "other"):
        await ask(client, picture((0, 0, 0)), model=model)
    engine.started.clear()
    engine.open.clear()
    first = asyncio.create_task(ask(client, picture((255, 0, 0))))
    assert await asyncio.to_thread(engine.started.wait, 10)
    # Both versions of the model are one flood.
    flood = [asyncio.create_task(ask(client, picture((255, 0, 0)), version=1 + n % 2)) for n in range(4)]
    await asyncio.wait(flood, timeout=0.2)
    others = [asyncio.create_task(ask(client, picture((0, 255, 0)), model="other")) for _ in range(2)]
    async with asyncio.timeout(10):
        while sum(task.done() for task in flood) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    refused, waiting = [task for task in flood if task.done()], [task for task in flood if not task.done()]
    assert {(task.result().status_code, task.result().json()["code"]) for task in refused} == {(503, "overloaded")}
    assert all(int(task.result().headers["retry-after"]) > 0 for task in refused)
    engine.open.set()
    assert [best(await task) for task in others] == ["G", "G"]
    assert {best(await task) for task in (first, *waiting)} <= {"red", "rot"}


@pytest.mark.parametrize(
    ("query", "status", "code", "named"),
    [
        ({"version": 9}, 404, "not_found", "no version 9"),
        ({"model": "roses"}, 404, "not_found", "'roses'"),
        ({"model": "elsewhere"}, 409, "conflict", "b" * 64),
        ({"model": "../secrets"}, 422, "invalid_request", "model"),
        ({"version": "x"}, 422, "invalid_request", "version"),
        ({"top_k": 0}, 422, "invalid_request", "top_k"),
    ],
)
async def test_what_cannot_be_answered(
    client: httpx2.AsyncClient, query: dict, status: int, code: str, named: str
) -> None:
    response = await ask(client, picture((1, 2, 3)), **query)
    assert (response.status_code, response.json()["code"]) == (status, code)
    assert named in response.json()["message"]


async def test_a_batch_answers_each_image_for_its_own_model(client: httpx2.AsyncClient, engine: MeanColour) -> None:
    asked = [
        ("colours", 1, 3, picture((255, 0, 0))),
        ("colours", 2, 1, picture((0, 255, 0))),
        ("colours", 1, 1, b"no image"),
        ("nobody", 1, 1, picture((0, 0, 255))),
        ("colours", 1, 0, picture((0, 0, 255))),
    ]
    questions = [
        ReplicaQuestion(model=model, version=version, top_k=top_k, size_bytes=len(image))
        for model, version, top_k, image in asked
    ]
    response = await client.post("/predict-batch", content=pack(questions, [image for *_, image in asked]))
    assert response.status_code == 200
    red, green, *refused = ReplicaAnswers.model_validate_json(response.content).answers
    assert isinstance(red, ReplicaPrediction)
    assert isinstance(green, ReplicaPrediction)
    assert [each.label for each in red.predictions] == ["red", "green", "blue"]
    assert [each.label for each in green.predictions] == ["grün"]
    codes = [each.code for each in refused if isinstance(each, ReplicaError)]
    assert codes == ["image_rejected", "not_found", "invalid_request"]
    alone = await ask(client, picture((255, 0, 0)), model="colours", version=1, top_k=3)
    assert ReplicaPrediction.model_validate_json(alone.content) == red


@pytest.mark.parametrize(
    "body",
    [b"", b"\0\0\0\x02{}", pack([ReplicaQuestion(model="colours", version=1, top_k=1, size_bytes=5)], [b"four"])],
)
async def test_a_broken_batch_is_refused_as_a_whole(client: httpx2.AsyncClient, body: bytes) -> None:
    response = await client.post("/predict-batch", content=body)
    assert response.status_code == 422
    assert ReplicaError.model_validate_json(response.content).code == "invalid_request"


async def test_another_call_is_not_found(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/predict")).status_code == 404
    assert (await client.post("/train")).status_code == 404


async def test_a_version_published_later_is_found(client: httpx2.AsyncClient, store: ObjectStore) -> None:
    assert (await ask(client, picture((255, 0, 0)), version=3)).status_code == 404
    publish(store, TRUNK, "colours", 3, BY_COLOUR, ["rouge", "vert", "bleu"])
    assert best(await ask(client, picture((255, 0, 0)), version=3)) == "rouge"


async def test_a_damaged_tail_is_never_used(client: httpx2.AsyncClient, store: ObjectStore) -> None:
    manifest = publish(store, TRUNK, "damaged", 1, BY_COLOUR, COLOURS)
    store.put(manifest.tail.key, random_tail(FEATURES, 3, seed=1).to_bytes())
    response = await ask(client, picture((255, 0, 0)), model="damaged")
    assert (response.status_code, response.json()["code"]) == (500, "corrupt_object")


@pytest.mark.parametrize("tail", [random_tail(FEATURES + 1, 3, seed=1), random_tail(FEATURES, 4, seed=1)])
async def test_a_tail_that_does_not_fit_is_never_used(
    client: httpx2.AsyncClient, store: ObjectStore, tail: Tail
) -> None:
    publish(store, TRUNK, "misfit", 1, tail, COLOURS)
    response = await ask(client, picture((255, 0, 0)), model="misfit")
    assert (response.status_code, response.json()["code"]) == (500, "corrupt_object")


async def test_a_manifest_that_cannot_be_read(client: httpx2.AsyncClient, store: ObjectStore) -> None:
    store.put(names.model_manifest("broken", 1), b"{}")
    response = await ask(client, picture((255, 0, 0)), model="broken")
    assert (response.status_code, response.json()["code"]) == (500, "corrupt_object")


async def test_a_hanging_engine_is_unhealthy(
    client: httpx2.AsyncClient, engine: MeanColour, service: TrunkService, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.check_health()
    engine.open.clear()
    task = asyncio.create_task(ask(client, picture((255, 0, 0))))
    assert await asyncio.to_thread(engine.started.wait, 10)
    service.check_health()
    now = time.monotonic()
    monkeypatch.setattr("ray_cluster.serve.batching.time.monotonic", lambda: now + STUCK_AFTER_S + 1)
    with pytest.raises(InternalError):
        service.check_health()
    monkeypatch.undo()
    engine.open.set()
    assert best(await task) == "red"
    service.check_health()


# --- challengers ---


class HeldStore:
    """A bucket whose manifest of one version is read once the gate is open."""

    def __init__(self, store: ObjectStore, model_name: str, version: int) -> None:
        self._store = store
        self._key = names.model_manifest(model_name, version)
        self.gate = threading.Event()

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)

    def get(self, key: str) -> bytes:
        assert key != self._key or self.gate.wait(10)
        return self._store.get(key)


class Stepped(MeanColour):
    """An engine that does one batch for each permit."""

    def __init__(self) -> None:
        super().__init__()
        self.permits = threading.Semaphore(0)
        self.reached = threading.Event()

    def features(self, images_BHWC: np.ndarray) -> np.ndarray:
        self.reached.set()
        assert self.permits.acquire(timeout=10)
        return super().features(images_BHWC)


def beside(service: TrunkService, image: bytes, challenger: object = 2) -> AbstractAsyncContextManager[Exchange]:
    """A question to version 1 of `colours` with a challenger in its shadow."""
    query: dict[str, object] = {"model": "colours", "version": 1, "top_k": 1}
    return exchange(app_of(service), "/predict", query, content=image, headers={CHALLENGER_HEADER: str(challenger)})


async def test_a_challenger_says_its_word_from_the_same_pass(service: TrunkService, engine: MeanColour) -> None:
    async with beside(service, picture((0, 255, 0))) as answer:
        first, second = await answer.rest()
    assert (answer.status, answer.headers["content-type"]) == (200, NDJSON)
    assert ReplicaPrediction.model_validate(first).predictions[0].label == "green"
    assert ReplicaScore.model_validate(second) == ReplicaScore(label="grün")
    assert engine.batches == [1]


async def test_nobody_waits_until_a_challenger_is_loaded_and_only_so_many_are_begun(
    store: ObjectStore, engine: MeanColour
) -> None:
    held = HeldStore(store, "colours", 2)
    service = TrunkService(held, TRUNK, [engine], tail_cache_bytes=1_000_000, max_waiting=20)
    async with AsyncExitStack() as stack:
        answers = [
            await stack.enter_async_context(beside(service, picture((255, 0, 0)))) for _ in range(CHALLENGERS_AT_ONCE)
        ]
        for answer in answers:
            assert (await answer.line())["predictions"][0]["label"] == "red"
        async with beside(service, picture((255, 0, 0))) as crowded:
            prediction, score = await crowded.rest()
        assert prediction["predictions"][0]["label"] == "red"
        assert score == {"label": None, "dropped": True, "error": None}
        held.gate.set()
        assert [[line["label"] for line in await answer.rest()] for answer in answers] == [["rot"]] * len(answers)
    async with beside(service, picture((255, 0, 0))) as answer:
        assert (await answer.rest())[1]["label"] == "rot"


async def test_under_load_challengers_are_dropped_first(store: ObjectStore) -> None:
    engine = Stepped()
    service = TrunkService(store, TRUNK, [engine], tail_cache_bytes=1_000_000, max_waiting=20)
    async with beside(service, picture((0, 0, 255))) as first, AsyncExitStack() as stack:
        await asyncio.to_thread(engine.reached.wait, 10)
        rest = [await stack.enter_async_context(beside(service, picture((255, 0, 0)))) for _ in range(20)]
        async with asyncio.timeout(10):
            while service.waiting_share < 1:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        engine.permits.release()
        prediction, score = await first.rest()
        assert (prediction["predictions"][0]["label"], score["dropped"]) == ("blue", True)
        engine.permits.release(4)
        lines = [await answer.rest() for answer in rest]
    assert [each[0]["predictions"][0]["label"] for each in lines] == ["red"] * 20
    async with beside(service, picture((255, 0, 0))) as answer:
        assert (await answer.rest())[1]["label"] == "rot"


@pytest.mark.parametrize("challenger", [9, 3])
async def test_a_challenger_that_cannot_be_used_is_named_on_its_own_line(
    service: TrunkService, store: ObjectStore, challenger: int
) -> None:
    publish(store, TRUNK, "colours", 3, random_tail(FEATURES + 1, 3, seed=1), COLOURS)
    async with beside(service, picture((0, 255, 0)), challenger) as answer:
        first, second = await answer.rest()
    assert first["predictions"][0]["label"] == "green"
    assert second["label"] is None
    assert second["error"].startswith("not_found" if challenger == 9 else "corrupt_object")


async def test_what_cannot_be_answered_is_answered_as_without_a_challenger(service: TrunkService) -> None:
    async with beside(service, b"no image") as answer:
        assert (await answer.whole())["code"] == "image_rejected"
    assert answer.status == 422


@pytest.mark.parametrize("challenger", ["", "two", "0", "-1", "9" * 30])
async def test_a_header_that_names_no_version_is_ignored(service: TrunkService, challenger: str) -> None:
    async with beside(service, picture((0, 255, 0)), challenger) as answer:
        assert (await answer.whole())["predictions"][0]["label"] == "green"
    assert answer.headers["content-type"] == "application/json"
