"""A job's events as they happen: over a real connection, because that is what they are for."""

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn

from services.contracts.jobs import EpochMetrics, JobEventType, Stage
from services.runtime.auth import Scope, create_key
from services.runtime.database import Database
from services.runtime.server import GatewayServer
from services.training.jobs import event_stream
from tests.servers.training import TrainingGateway, problem, training_gateway


@dataclass
class Event:
    id: str = ""
    type: str = ""
    data: dict[str, Any] | None = None


async def read(lines: AsyncIterator[str]) -> AsyncIterator[Event]:
    """Server-sent events, by the letter of the specification; comments are left out."""
    event = Event()
    async for line in lines:
        match line.partition(":"):
            case ("id", _, value):
                event.id = value.strip()
            case ("event", _, value):
                event.type = value.strip()
            case ("data", _, value):
                event.data = json.loads(value)
            case ("", "", ""):
                if event.data is not None:
                    yield event
                event = Event()
            case _:
                pass


async def collect(client: httpx2.AsyncClient, url: str, **options: Any) -> list[Event]:
    """All events up to the stream's end."""
    async with client.stream("GET", url, timeout=30, **options) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return [event async for event in read(response.aiter_lines())]


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=number, epochs=9, train_loss=1, train_accuracy=0.5, validation_loss=None, validation_accuracy=None
    )


@asynccontextmanager
async def served(gateway: TrainingGateway) -> AsyncGenerator[tuple[httpx2.AsyncClient, GatewayServer], None]:
    """The started gateway behind a real HTTP server that waits for its requests for ever."""
    training = gateway.app.state.training

    def end_streams() -> None:
        training.ending.set()
        training.changed.send()

    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    server = GatewayServer(uvicorn.Config(gateway.app, log_config=None, lifespan="off"), end_streams)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        async with httpx2.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
            yield client, server
    finally:
        server.should_exit = True
        await serving


@pytest.fixture
async def job(gateway: TrainingGateway) -> str:
    return (await gateway.job())["id"]


async def test_the_whole_story_of_a_job_that_has_ended(each_gateway: TrainingGateway) -> None:
    gateway = each_gateway
    job = (await gateway.job())["id"]
    attempt = await gateway.attempt(job)
    attempt.run()
    attempt.report(JobEventType.EPOCH, Stage.FIT, epoch(1), "epoch 1")
    attempt.publish()
    await gateway.job_in(job, "succeeded")
    events = await collect(gateway.client, f"/v1/training-jobs/{job}/events")
    assert [event.data for event in events] == await gateway.events(job)
    assert [event.id for event in events] == [str(number) for number in range(1, len(events) + 1)]
    assert events[-1].data is not None
    assert (events[-1].type, events[-1].data["state"]) == ("state", "succeeded")
    (told,) = [event.data for event in events if event.type == "epoch"]
    assert told is not None
    assert told["data"]["epoch"] == 1


async def test_a_client_that_comes_back_gets_what_it_missed_and_nothing_twice(
    gateway: TrainingGateway, job: str
) -> None:
    attempt = await gateway.attempt(job)
    attempt.run()
    for number in range(1, 6):
        attempt.report(JobEventType.EPOCH, Stage.FIT, epoch(number))
    attempt.publish()
    await gateway.job_in(job, "succeeded")
    url = f"/v1/training-jobs/{job}/events"
    whole = [event.id for event in await collect(gateway.client, url)]
    again = await collect(gateway.client, url, headers={"Last-Event-ID": "4"}, params={"after": 1})
    assert [event.id for event in again] == whole[4:]
    assert [event.id for event in await collect(gateway.client, url, params={"after": 2})] == whole[2:]
    assert await collect(gateway.client, url, headers={"Last-Event-ID": whole[-1]}) == []
    assert await collect(gateway.client, url, headers={"Last-Event-ID": "9" * 50}) == []
    assert [event.id for event in await collect(gateway.client, url, headers={"Last-Event-ID": "x"})] == whole


async def test_more_events_than_are_read_at_a_time_arrive_in_order(gateway: TrainingGateway, job: str) -> None:
    attempt = await gateway.attempt(job)
    count = event_stream.BATCH * 2 + 50
    for number in range(1, count + 1):
        attempt.report(JobEventType.EPOCH, Stage.FIT, epoch(number))
    attempt.publish()
    await gateway.job_in(job, "succeeded")
    events = await collect(gateway.client, f"/v1/training-jobs/{job}/events")
    epochs = [event.data["data"]["epoch"] for event in events if event.data and event.type == "epoch"]
    assert epochs == list(range(1, count + 1))


async def test_an_unknown_job_is_a_problem_and_no_stream(gateway: TrainingGateway) -> None:
    problem(await gateway.client.get("/v1/training-jobs/job_" + "0" * 24 + "/events"), 404, "not_found")


# --- over a real connection -----------------------------------------------------------------------------------------


async def test_events_arrive_while_the_job_runs(gateway: TrainingGateway, job: str) -> None:
    attempt = await gateway.attempt(job)
    async with served(gateway) as (client, _), client.stream("GET", f"/v1/training-jobs/{job}/events") as response:
        events = read(response.aiter_lines())
        assert (await anext(events)).data == (await gateway.events(job))[0]
        for number in (1, 2, 3):
            attempt.report(JobEventType.EPOCH, Stage.FIT, epoch(number), f"epoch {number}")
            # Only after this one has arrived the next one happens.
            while (event := await anext(events)).type != "epoch":
                pass
            assert event.data is not None
            assert event.data["message"] == f"epoch {number}"
        attempt.publish()
        rest = [event async for event in events]
        assert rest[-1].data is not None
        assert rest[-1].data["state"] == "succeeded"


async def test_a_server_that_stops_ends_its_streams(gateway: TrainingGateway, job: str) -> None:
    await gateway.attempt(job)
    async with served(gateway) as (client, server), client.stream("GET", f"/v1/training-jobs/{job}/events") as response:
        events = read(response.aiter_lines())
        await anext(events)
        server.should_exit = True
        # The job goes on, so only the server can end this.
        async for _ in events:
            pass


async def test_a_stream_does_not_live_for_ever(gateway: TrainingGateway, job: str) -> None:
    await gateway.attempt(job)
    events = [event async for event in event_stream.follow(gateway.app.state.training, job, 0, max_life_s=0.1)]
    assert events[0].message == "Accepted."
    assert not (await gateway.read(job))["finished_at"]


async def test_a_large_upload_goes_to_the_store_and_half_of_one_does_not(gateway: TrainingGateway) -> None:
    dataset = (await gateway.client.post("/v1/datasets", json={"name": "x", "source": {"type": "upload"}})).json()["id"]
    path = f"/v1/datasets/{dataset}/files/a/1.jpg"
    data = bytes(range(256)) * 40_000

    async def half() -> AsyncIterator[bytes]:
        yield data[:3_000_000]
        raise InterruptedError

    async with served(gateway) as (client, _):
        with pytest.raises(InterruptedError):
            await client.put(path, content=half())
        assert list(gateway.store.list("datasets/")) == [
            info for info in gateway.store.list("datasets/") if info.key.endswith("dataset.json")
        ]
        assert (await client.put(path, content=data)).json()["size_bytes"] == len(data)
    assert gateway.store.get(f"datasets/{dataset}/files/a/1.jpg") == data


# --- keys -----------------------------------------------------------------------------------------------------------


async def test_a_key_may_do_what_its_scope_says(tmp_path: Path, empty_sqlite_url: str) -> None:
    database = Database(empty_sqlite_url)
    await database.migrate()
    keys = {scope: (await create_key(database, scope.value, [scope])).plaintext for scope in Scope}
    await database.close()
    async with training_gateway(tmp_path, empty_sqlite_url, require_api_keys=True) as gateway:
        body = {"name": "x", "source": {"type": "upload"}}

        async def status(method: str, path: str, scope: Scope | None) -> int:
            headers = {} if scope is None else {"authorization": f"Bearer {keys[scope]}"}
            sent = {"json": body} if method == "POST" else {}
            return (await gateway.client.request(method, path, headers=headers, **sent)).status_code

        for path in ("/v1/datasets", "/v1/training-jobs", "/v1/models"):
            assert [await status("GET", path, scope) for scope in (None, Scope.TRAIN, Scope.READ, Scope.ADMIN)] == [
                *(401, 403, 200, 200)
            ]
        assert [await status("POST", "/v1/datasets", scope) for scope in (None, Scope.READ, Scope.TRAIN)] == [
            *(401, 403, 201)
        ]
        # The same key text of two people means two requests.
        made = set()
        for scope in (Scope.TRAIN, Scope.ADMIN):
            headers = {"authorization": f"Bearer {keys[scope]}", "idempotency-key": "same"}
            made.add((await gateway.client.post("/v1/datasets", json=body, headers=headers)).json()["id"])
        assert len(made) == 2
