"""Predictions through the gateway: real HTTP to a server that speaks the replicas' contract, a real database."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx2
import pytest
from fastapi import FastAPI

from services.contracts.base import utc_now
from services.inference import courier, replicas
from services.inference.main import build_app
from services.local.ports import free_ports
from services.runtime.auth import Scope, create_key
from services.runtime.database.tables import ModelAliasRow, ModelVersionRow
from services.runtime.settings import Settings
from tests.servers.serve_fake import (
    REJECTED,
    FakeServe,
    no_replica,
    proxy_busy,
    replica_died,
    running,
)

TRUNK = "a" * 64
OTHER_TRUNK = "b" * 64
JPEG = {"content-type": "image/jpeg"}


@pytest.fixture(autouse=True)
def one_image_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that each image can be answered by itself. With more of them: `test_predict_batches`."""
    monkeypatch.setattr(courier, "MAX_BATCH", 1)
    monkeypatch.setattr(replicas, "CALLS_AT_ONCE", 512)


@pytest.fixture
def serve() -> FakeServe:
    fake = FakeServe()
    fake.deployed = {TRUNK, OTHER_TRUNK}
    fake.versions = {("flowers", 1): TRUNK, ("flowers", 3): TRUNK, ("birds", 1): TRUNK, ("base", 1): OTHER_TRUNK}
    return fake


@pytest.fixture
def serve_url(serve: FakeServe) -> Generator[str, None, None]:
    with running(serve, free_ports(1)[0]) as url:
        yield url


def settings_for(folder: Path, serve_url: str, **options: object) -> Settings:
    return Settings(
        home=folder, serve_url=serve_url, **{"predict_deadline_s": 10, "allow_local_sources": True} | options
    )


@asynccontextmanager
async def started(settings: Settings) -> AsyncGenerator[FastAPI, None]:
    """The started gateway with version 1 and 3 of `flowers`, version 2 deleted, and `base`."""
    app = build_app(settings)
    async with app.router.lifespan_context(app):
        await publish(app)
        yield app


@asynccontextmanager
async def gateway(settings: Settings) -> AsyncGenerator[httpx2.AsyncClient, None]:
    """A client of the started gateway."""
    async with started(settings) as app:
        transport = httpx2.ASGITransport(app=app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
            yield client


async def publish(app: FastAPI) -> None:
    now = utc_now()
    versions = [("flowers", 1, TRUNK, None), ("flowers", 2, TRUNK, now), ("flowers", 3, TRUNK, None)]
    versions += [("birds", 1, TRUNK, None), ("base", 1, OTHER_TRUNK, None), ("gone", 1, TRUNK, now)]
    async with app.state.database.transaction() as session:
        for name, number, trunk_id, deleted_at in versions:
            session.add(
                ModelVersionRow(
                    model_name=name,
                    version=number,
                    created_at=now,
                    job_id="job_1",
                    trunk_id=trunk_id,
                    manifest={},
                    deleted_at=deleted_at,
                )
            )
        for alias, number in (("production", 1), ("old", 2)):
            session.add(ModelAliasRow(model_name="flowers", alias=alias, version=number, updated_at=now))


@pytest.fixture
async def client(serve_url: str, tmp_path: Path) -> AsyncIterator[httpx2.AsyncClient]:
    async with gateway(settings_for(tmp_path, serve_url)) as client:
        yield client


def labels(response: httpx2.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [result["predictions"][0]["label"] for result in response.json()["results"]]


def problem(response: httpx2.Response, status: int, code: str) -> dict:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["code"] == code, body
    return body


async def post(client: httpx2.AsyncClient, body: bytes = b"rose", model: str = "flowers", **query: object):
    return await client.post(f"/v1/models/{model}/predict", params=query, content=body, headers=JPEG)


# --- which version ---


async def test_the_latest_version_that_is_not_deleted_answers(client: httpx2.AsyncClient) -> None:
    response = await post(client)
    assert response.json() == {
        "model_name": "flowers",
        "version": 3,
        "results": [
            {
                "status": "ok",
                "image": "image",
                "predictions": [
                    {"label": "rose by flowers v3", "probability": 0.75, "index": 1},
                    {"label": "other", "probability": 0.25, "index": 0},
                ],
            }
        ],
    }


async def test_a_version_or_an_alias_can_be_named_and_base_is_a_model_like_any(client: httpx2.AsyncClient) -> None:
    assert labels(await post(client, version=1)) == ["rose by flowers v1"]
    assert labels(await post(client, alias="production")) == ["rose by flowers v1"]
    assert labels(await post(client, model="base")) == ["rose by base v1"]


async def test_top_k_limits_the_labels(client: httpx2.AsyncClient) -> None:
    assert len((await post(client, top_k=1)).json()["results"][0]["predictions"]) == 1


@pytest.mark.parametrize(
    ("model", "query", "named"),
    [
        ("roses", {}, "no model 'roses'"),
        ("gone", {}, "no model 'gone'"),
        ("roses", {"version": 1}, "no model 'roses'"),
        ("flowers", {"version": 9}, "no version 9"),
        ("flowers", {"version": 2}, "no version 2"),
        ("flowers", {"alias": "staging"}, "no alias 'staging'"),
        ("flowers", {"alias": "old"}, "no version 2"),
    ],
)
async def test_what_does_not_exist_is_named(client: httpx2.AsyncClient, model: str, query: dict, named: str) -> None:
    assert named in problem(await post(client, model=model, **query), 404, "not_found")["detail"]


@pytest.mark.parametrize(
    "query", [{"version": 1, "alias": "production"}, {"version": 0}, {"version": 2**40}, {"top_k": 0}, {"alias": "A B"}]
)
async def test_a_query_that_makes_no_sense_is_refused(client: httpx2.AsyncClient, query: dict) -> None:
    problem(await post(client, **query), 422, "validation_failed")


async def test_a_promotion_is_seen_within_seconds(client: httpx2.AsyncClient, serve_url: str, tmp_path: Path) -> None:
    assert labels(await post(client, alias="production")) == ["rose by flowers v1"]
    app = build_app(settings_for(tmp_path, serve_url))
    async with app.state.database.transaction() as session:
        row = await session.get(ModelAliasRow, ("flowers", "production"))
        row.version = 3
    await app.state.database.close()
    async with asyncio.timeout(10):
        while labels(await post(client, alias="production")) != ["rose by flowers v3"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


# --- how images come ---


async def test_many_files_are_answered_in_order(client: httpx2.AsyncClient, serve: FakeServe) -> None:
    names = [f"image {i}.jpg" for i in range(40)]
    serve.delay_s = 0.01
    files = [("images", (name, f"picture {i}".encode(), "image/jpeg")) for i, name in enumerate(names)]
    response = await client.post("/v1/models/flowers/predict", files=files)
    assert labels(response) == [f"picture {i} by flowers v3" for i in range(40)]
    assert [result["image"] for result in response.json()["results"]] == names
    assert 1 < serve.most_in_progress <= 16


async def test_a_large_file_arrives_whole(client: httpx2.AsyncClient) -> None:
    content = b"x" * 3_000_000
    response = await client.post("/v1/models/flowers/predict", files=[("images", ("a.bin", content))])
    assert labels(response) == [f"{content.decode()} by flowers v3"]


async def test_octet_stream_is_an_image(client: httpx2.AsyncClient) -> None:
    headers = {"content-type": "application/octet-stream"}
    assert labels(await client.post("/v1/models/flowers/predict", content=b"rose", headers=headers)) == [
        "rose by flowers v3"
    ]


async def test_images_by_uri(client: httpx2.AsyncClient, tmp_path: Path) -> None:
    folder = tmp_path / "incoming"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"rose")
    (folder / "b.jpg").write_bytes(b"tulip")
    uris = [(folder / name).as_uri() for name in ("b.jpg", "missing.jpg", "a.jpg")]
    response = await client.post("/v1/models/flowers/predict", json={"images": [{"uri": uri} for uri in uris]})
    assert response.status_code == 200, response.text
    tulip, missing, rose = response.json()["results"]
    assert tulip["image"] == uris[0]
    assert tulip["predictions"][0]["label"] == "tulip by flowers v3"
    assert rose["predictions"][0]["label"] == "rose by flowers v3"
    assert (missing["status"], missing["code"], missing["image"]) == ("error", "source_unreadable", uris[1])


async def test_a_uri_outside_the_allowed_sources_is_not_read(serve_url: str, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(b"rose")
    body = {"images": [{"uri": (tmp_path / "secret.jpg").as_uri()}]}
    async with gateway(settings_for(tmp_path, serve_url, allow_local_sources=False)) as client:
        problem(await client.post("/v1/models/flowers/predict", json=body), 403, "source_not_allowed")


async def test_a_file_in_a_bucket_beyond_the_limit_is_rejected(serve_url: str, tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(b"x" * 2000)
    body = {"images": [{"uri": (tmp_path / "large.jpg").as_uri()}]}
    async with gateway(settings_for(tmp_path, serve_url, max_upload_bytes=1999)) as client:
        found = problem(await client.post("/v1/models/flowers/predict", json=body), 422, "image_rejected")
    assert found["details"]["reason"] == "too_large"


# --- images that cannot be used ---


async def test_a_bad_image_among_many_leaves_the_others_alone(client: httpx2.AsyncClient) -> None:
    files = [("images", (f"{i}.jpg", data)) for i, data in enumerate((b"rose", REJECTED, b"tulip"))]
    response = await client.post("/v1/models/flowers/predict", files=files)
    assert response.status_code == 200
    first, second, third = response.json()["results"]
    assert first["predictions"][0]["label"] == "rose by flowers v3"
    assert second == {
        "status": "error",
        "image": "1.jpg",
        "code": "image_rejected",
        "message": "the file is not an image",
    }
    assert third["predictions"][0]["label"] == "tulip by flowers v3"


async def test_the_only_image_being_bad_is_a_problem(client: httpx2.AsyncClient) -> None:
    found = problem(await post(client, REJECTED), 422, "image_rejected")
    assert found["detail"] == "the file is not an image"
    assert found["details"] == {"reason": "not_an_image"}


# --- requests that cannot be answered ---


@pytest.mark.parametrize(
    ("request_parts", "status", "code", "named"),
    [
        ({"content": b"rose"}, 415, "unsupported_media_type", "content type"),
        ({"data": {"image": "rose"}}, 415, "unsupported_media_type", "x-www-form-urlencoded"),
        ({"content": b"", "headers": JPEG}, 400, "invalid_request", "empty"),
        ({"files": [("picture", ("a.jpg", b"rose"))]}, 400, "invalid_request", "'picture'"),
        ({"files": [("images", (None, b"rose"))]}, 400, "invalid_request", "text"),
        (
            {"content": b"--x--\r\n", "headers": {"content-type": "multipart/form-data; boundary=x"}},
            400,
            "invalid_request",
            "no image",
        ),
        ({"content": b"rose", "headers": {"content-type": "multipart/form-data"}}, 400, "invalid_request", "boundary"),
        ({"json": {"images": []}}, 422, "validation_failed", "images"),
        ({"json": {"image": "s3://a/b"}}, 422, "validation_failed", "images"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 422, "validation_failed", "JSON"),
        ({"json": {"images": [{"uri": "https://host/a.jpg"}]}}, 403, "source_not_allowed", "https://host/a.jpg"),
    ],
)
async def test_a_body_without_usable_images_is_refused(
    client: httpx2.AsyncClient, serve: FakeServe, request_parts: dict, status: int, code: str, named: str
) -> None:
    response = await client.post("/v1/models/flowers/predict", **request_parts)
    assert named in problem(response, status, code)["detail"]
    assert not serve.requests


@pytest.mark.parametrize("kind", ["form", "uris"])
async def test_too_many_images(serve_url: str, tmp_path: Path, kind: str) -> None:
    async with gateway(settings_for(tmp_path, serve_url, max_images_per_request=3)) as client:
        if kind == "form":
            files = [("images", (f"{i}.jpg", b"rose")) for i in range(5)]
            response = await client.post("/v1/models/flowers/predict", files=files)
        else:
            uris = [{"uri": f"s3://bucket/{i}.jpg"} for i in range(4)]
            response = await client.post("/v1/models/flowers/predict", json={"images": uris})
    found = problem(response, 413, "payload_too_large")
    assert "at most 3" in found["detail"]


@pytest.mark.parametrize("headers", [JPEG, {"content-type": "multipart/form-data; boundary=x"}])
async def test_an_endless_body_is_not_read_to_its_end(serve_url: str, tmp_path: Path, headers: dict) -> None:
    sent = 0

    async def endless() -> AsyncGenerator[bytes, None]:
        nonlocal sent
        yield b'--x\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        while sent < 10_000_000:
            sent += 10_000
            yield b"x" * 10_000

    async with gateway(settings_for(tmp_path, serve_url, max_upload_bytes=50_000)) as client:
        response = await client.post("/v1/models/flowers/predict", content=endless(), headers=headers)
    found = problem(response, 413, "payload_too_large")
    assert found["details"]["max_bytes"] == 50_000
    assert sent < 100_000


async def test_a_body_declared_too_large_is_refused(serve_url: str, tmp_path: Path) -> None:
    async with gateway(settings_for(tmp_path, serve_url, max_upload_bytes=2000)) as client:
        problem(await post(client, b"x" * 2001), 413, "payload_too_large")
        assert labels(await post(client, b"x" * 2000)) == ["x" * 2000 + " by flowers v3"]


# --- replicas that are not there ---


async def test_a_request_is_held_until_the_application_is_deployed(
    client: httpx2.AsyncClient, serve: FakeServe
) -> None:
    serve.deployed.clear()
    held = asyncio.create_task(post(client))
    async with asyncio.timeout(5):
        while serve.requests.total() < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not held.done()
    serve.deployed.add(TRUNK)
    assert labels(await held) == ["rose by flowers v3"]


async def test_a_request_is_held_while_serve_itself_starts(serve: FakeServe, tmp_path: Path) -> None:
    port = free_ports(1)[0]
    async with gateway(settings_for(tmp_path, f"http://127.0.0.1:{port}")) as client:
        held = asyncio.create_task(post(client))
        await asyncio.wait([held], timeout=0.3)
        assert not held.done()
        with running(serve, port):
            assert labels(await held) == ["rose by flowers v3"]


async def test_after_the_deadline_a_loading_model_is_a_503(serve_url: str, serve: FakeServe, tmp_path: Path) -> None:
    serve.deployed.clear()
    async with gateway(settings_for(tmp_path, serve_url, predict_deadline_s=0.3)) as client:
        response = await post(client)
    problem(response, 503, "model_loading")
    assert int(response.headers["retry-after"]) > 0


async def test_a_replica_that_never_answers_is_a_503_not_a_hang(
    serve_url: str, serve: FakeServe, tmp_path: Path
) -> None:
    async with gateway(settings_for(tmp_path, serve_url, predict_deadline_s=0.3)) as client:
        serve.delay_s = 5
        problem(await post(client), 503, "model_loading")
        serve.delay_s = 0
        assert labels(await post(client)) == ["rose by flowers v3"]
        serve.delay_s = 5
        problem(await post(client), 503, "overloaded")
        serve.delay_s = 0


@pytest.mark.parametrize("answer", [no_replica, replica_died])
async def test_a_lost_replica_is_not_the_clients_business(
    client: httpx2.AsyncClient, serve: FakeServe, answer: object
) -> None:
    serve.answers_first = [answer()]
    assert labels(await post(client)) == ["rose by flowers v3"]
    assert serve.requests.total() == 2


async def test_a_replica_or_proxy_that_starts_may_fail_several_times(
    client: httpx2.AsyncClient, serve: FakeServe
) -> None:
    serve.answers_first = [replica_died() for _ in range(4)]
    assert labels(await post(client)) == ["rose by flowers v3"]
    assert serve.requests.total() == 5


async def test_a_replica_that_keeps_dying_is_our_fault_and_said_soon(
    client: httpx2.AsyncClient, serve: FakeServe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replicas, "CRASHING_S", 0.5)
    serve.answers_first = [replica_died() for _ in range(50)]
    problem(await post(client), 500, "internal_error")
    assert 3 <= serve.requests.total() < 50


async def test_overload_is_passed_on_at_once(client: httpx2.AsyncClient, serve: FakeServe) -> None:
    serve.answers_first = [proxy_busy()]
    response = await post(client)
    problem(response, 503, "overloaded")
    assert int(response.headers["retry-after"]) > 0
    assert serve.requests.total() == 1


async def test_a_version_that_is_gone_from_the_bucket_is_not_found(
    client: httpx2.AsyncClient, serve: FakeServe
) -> None:
    del serve.versions["flowers", 3]
    problem(await post(client), 404, "not_found")


# --- around it ---


async def test_readiness_reports_serve_and_does_not_depend_on_it(
    client: httpx2.AsyncClient, serve_url: str, tmp_path: Path
) -> None:
    response = await client.get("/readyz")
    assert response.status_code == 200
    assert response.json()["unavailable"] == {}
    async with gateway(settings_for(tmp_path / "alone", f"http://127.0.0.1:{free_ports(1)[0]}")) as alone:
        response = await alone.get("/readyz")
    assert response.status_code == 200
    assert "cannot be reached" in response.json()["unavailable"]["serve"]


async def test_a_key_needs_the_scope_predict(serve_url: str, tmp_path: Path) -> None:
    settings = settings_for(tmp_path, serve_url, require_api_keys=True)
    app = build_app(settings)
    await app.state.database.migrate()
    keys = {
        scope: (await create_key(app.state.database, scope.value, [scope])).plaintext
        for scope in (Scope.PREDICT, Scope.READ)
    }
    await app.state.database.close()
    async with gateway(settings) as client:

        async def status(headers: dict[str, str]) -> int:
            answer = await client.post("/v1/models/flowers/predict", content=b"rose", headers=JPEG | headers)
            return answer.status_code

        assert await status({}) == 401
        assert await status({"authorization": f"Bearer {keys[Scope.READ]}"}) == 403
        assert await status({"authorization": f"Bearer {keys[Scope.PREDICT]}"}) == 200


async def test_the_document_describes_all_three_bodies(client: httpx2.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/models/{model_name}/predict"]["post"]
    assert operation["operationId"] == "predict"
    content = operation["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/json", "application/octet-stream"}
    assert all("examples" in content[kind] for kind in content)
    refs = [part.split('"')[0] for part in json.dumps(operation).split('"$ref": "#/components/schemas/')[1:]]
    assert set(refs) <= set(document["components"]["schemas"])
