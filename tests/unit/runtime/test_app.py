"""What every gateway does around its own routes."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx2
import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import StreamingResponse

from services.contracts.errors import ClusterUnavailable, NotFound
from services.runtime.app import ReadinessCheck, StartRefused, create_app
from services.runtime.auth import Principal, Scope, create_key, require, revoke_key
from services.runtime.database import Database
from services.runtime.problems import problem_responses
from services.runtime.settings import Settings

jobs = APIRouter(prefix="/jobs", tags=["jobs"])


@jobs.get("/{job_id}", responses=problem_responses(NotFound))
async def get_job(job_id: str, principal: Annotated[Principal, Depends(require(Scope.READ))]) -> dict[str, str]:
    if job_id == "missing":
        raise NotFound(f"no job {job_id!r}")
    return {"job_id": job_id, "principal": principal.id}


@jobs.post("")
async def create_job(
    spec: dict[str, int], principal: Annotated[Principal, Depends(require(Scope.TRAIN))]
) -> dict[str, str]:
    return {"principal": principal.id}


@jobs.put("/{job_id}/file", max_body_size=10_000)
async def put_file(job_id: str, request: Request) -> int:
    return sum([len(chunk) async for chunk in request.stream()])


@jobs.get("/{job_id}/boom")
async def get_boom(job_id: str) -> None:
    raise ZeroDivisionError(job_id)


@jobs.get("/{job_id}/stream")
async def get_stream(job_id: str) -> StreamingResponse:
    async def parts() -> AsyncGenerator[bytes, None]:
        yield b"first"
        if job_id == "broken":
            raise ZeroDivisionError
        yield b"last"

    return StreamingResponse(parts())


v1 = APIRouter(prefix="/v1")
v1.include_router(jobs)

BODY_LIMIT = 2048


class Gateways:
    """Starts gateways, each with a database of its own, and stops them at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.database = Database(f"sqlite:///{folder}/rekindle.db")

    def build(
        self,
        settings: dict[str, Any] | None = None,
        readiness: dict[str, ReadinessCheck] | None = None,
        routers: Sequence[APIRouter] = (v1,),
        **options: Any,
    ) -> FastAPI:
        return create_app(
            service="test",
            title="Test",
            description="A gateway.",
            version="1",
            settings=Settings(home=self._folder, max_request_bytes=BODY_LIMIT, **(settings or {})),
            routers=routers,
            database=self.database,
            readiness=readiness,
            tags=[("jobs", "Jobs.")],
            **options,
        )


@asynccontextmanager
async def running(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of the started application."""
    transport = httpx2.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx2.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


@pytest.fixture
def gateways(tmp_path: Path) -> Gateways:
    return Gateways(tmp_path)


@pytest.fixture
async def client(gateways: Gateways) -> AsyncIterator[httpx2.AsyncClient]:
    async with running(gateways.build()) as client:
        yield client


def code_of(response: httpx2.Response) -> tuple[int, str]:
    assert response.headers["content-type"] == "application/problem+json"
    return response.status_code, response.json()["code"]


# --- requests ---


async def test_a_request_keeps_its_id_and_gets_one_without(client: httpx2.AsyncClient) -> None:
    given = await client.get("/v1/jobs/missing", headers={"X-Request-ID": "trace-1"})
    assert given.headers["x-request-id"] == "trace-1"
    assert given.json()["request_id"] == "trace-1"
    first, second = [(await client.get("/healthz")).headers["x-request-id"] for _ in range(2)]
    assert first
    assert first != second


async def test_an_id_that_would_forge_log_lines_is_replaced(client: httpx2.AsyncClient) -> None:
    for forged in ("a b", "a" * 129, "é"):
        answer = await client.get("/healthz", headers={"X-Request-ID": forged.encode()})
        assert answer.headers["x-request-id"].isalnum()


async def test_a_crash_answers_500_with_the_id_to_look_for(client: httpx2.AsyncClient) -> None:
    answer = await client.get("/v1/jobs/secret/boom")
    assert code_of(answer) == (500, "internal_error")
    assert answer.headers["x-request-id"] in answer.json()["detail"]


async def test_a_stream_that_breaks_does_not_look_complete(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/v1/jobs/fine/stream")).content == b"firstlast"
    with pytest.raises(ZeroDivisionError):  # what makes a server cut the connection
        await client.get("/v1/jobs/broken/stream")


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_over_the_limit_is_refused(client: httpx2.AsyncClient, chunked: bool) -> None:
    body = b'{"a": 1' + b" " * BODY_LIMIT + b"}"

    async def chunks() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 500):
            yield body[start : start + 500]

    content = chunks() if chunked else body
    answer = await client.post("/v1/jobs", content=content, headers={"content-type": "application/json"})
    assert code_of(answer) == (413, "payload_too_large")
    assert answer.headers["x-request-id"]


async def test_a_route_may_have_a_limit_of_its_own(client: httpx2.AsyncClient) -> None:
    assert (await client.put("/v1/jobs/j/file", content=b"x" * 9_000)).json() == 9_000
    assert code_of(await client.put("/v1/jobs/j/file", content=b"x" * 11_000)) == (413, "payload_too_large")


# --- health and metrics ---


async def test_a_ready_gateway_says_what_it_looked_at(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/healthz")).json() == {"status": "ok", "release": "1"}
    answer = await client.get("/readyz")
    assert answer.status_code == 200
    assert answer.json()["checks"] == ["database"]


async def test_a_gateway_that_is_not_ready_says_why(gateways: Gateways) -> None:
    async def cluster() -> None:
        raise ClusterUnavailable("nothing answers at http://127.0.0.1:8265")

    async def disk() -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    async with running(gateways.build(readiness={"cluster": cluster, "disk": disk})) as client:
        answer = await client.get("/readyz")
        assert code_of(answer) == (503, "unavailable")
        assert answer.json()["details"]["failed"] == {
            "cluster": "nothing answers at http://127.0.0.1:8265",
            "disk": "Connection refused",
        }
        assert (await client.get("/healthz")).status_code == 200


async def test_what_a_gateway_can_do_without_is_reported_and_no_more(gateways: Gateways) -> None:
    async def cluster() -> None:
        raise ClusterUnavailable("nothing answers")

    async with running(gateways.build(dependencies={"cluster": cluster})) as client:
        answer = await client.get("/readyz")
        assert answer.status_code == 200
        assert answer.json()["unavailable"] == {"cluster": "nothing answers"}


async def test_metrics_count_requests_by_route_and_not_by_path(client: httpx2.AsyncClient) -> None:
    def series(route: str, status: int) -> str:
        return f'rekindle_http_requests_total{{method="GET",route="{route}",service="test",status="{status}"}}'

    for job_id in ("metrics-a", "metrics-b", "missing"):
        await client.get(f"/v1/jobs/{job_id}")
    await client.get("/no-such-path")
    shown = (await client.get("/metrics")).text
    assert series("/v1/jobs/{job_id}", 200) in shown
    assert series("/v1/jobs/{job_id}", 404) in shown
    assert series("unmatched", 404) in shown
    assert "metrics-a" not in shown
    assert "no-such-path" not in shown
    assert 'rekindle_http_request_duration_seconds_bucket{le="0.005",method="GET",route="/v1/jobs/{job_id}"' in shown


# --- start and stop ---


async def test_the_lifespan_runs_beside_the_requests_on_a_migrated_database(gateways: Gateways) -> None:
    steps: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await app.state.database.ping()
        steps.append("started")
        yield
        await app.state.database.ping()
        steps.append("stopped")

    async with running(gateways.build(lifespan=lifespan)) as client:
        await client.get("/healthz")
        assert steps == ["started"]
    assert steps == ["started", "stopped"]


async def test_an_open_address_without_any_key_refuses_to_start(gateways: Gateways) -> None:
    app = gateways.build({"host": "0.0.0.0"})
    with pytest.raises(StartRefused, match="rekindle keys create"):
        async with app.router.lifespan_context(app):
            pytest.fail("it serves")


async def test_an_open_address_with_only_revoked_keys_refuses_to_start(gateways: Gateways) -> None:
    await gateways.database.migrate()
    created = await create_key(gateways.database, "gone", [Scope.READ])
    await revoke_key(gateways.database, created.key.id)
    app = gateways.build({"host": "0.0.0.0"})
    with pytest.raises(StartRefused):
        async with app.router.lifespan_context(app):
            pytest.fail("it serves")


# --- keys ---


async def test_without_keys_required_everything_is_permitted_locally(client: httpx2.AsyncClient) -> None:
    assert (await client.get("/v1/jobs/j")).json() == {"job_id": "j", "principal": "local"}


async def test_a_key_opens_what_its_scopes_permit(gateways: Gateways) -> None:
    await gateways.database.migrate()
    reader = await create_key(gateways.database, "reader", [Scope.READ])
    admin = await create_key(gateways.database, "admin", [Scope.ADMIN])
    async with running(gateways.build({"require_api_keys": True})) as client:
        for headers in ({"Authorization": f"Bearer {reader.plaintext}"}, {"X-API-Key": reader.plaintext}):
            assert (await client.get("/v1/jobs/j", headers=headers)).json()["principal"] == reader.key.id
            refused = await client.post("/v1/jobs", json={}, headers=headers)
            assert code_of(refused) == (403, "permission_denied")
            assert refused.json()["details"] == {"needed": "train"}
        permitted = await client.post("/v1/jobs", json={}, headers={"Authorization": f"bearer {admin.plaintext}"})
        assert permitted.json() == {"principal": admin.key.id}


async def test_without_a_valid_key_nothing_but_health_is_answered(gateways: Gateways) -> None:
    await gateways.database.migrate()
    created = await create_key(gateways.database, "key", [Scope.READ])
    wrong_secret = created.plaintext[:-1] + ("0" if created.plaintext[-1] != "0" else "1")
    unknown_id = f"rk_{'0' * 16}_{created.plaintext.rpartition('_')[2]}"
    async with running(gateways.build({"require_api_keys": True})) as client:
        for headers in (
            {},
            {"Authorization": f"Bearer {wrong_secret}"},
            {"Authorization": f"Bearer {unknown_id}"},
            {"Authorization": f"Basic {created.plaintext}"},
            {"Authorization": "Bearer rk_"},
            {"X-API-Key": created.plaintext + "\n"},
            {"Authorization": "Bearer nonsense", "X-API-Key": created.plaintext},
        ):
            answer = await client.get("/v1/jobs/j", headers=headers)
            assert code_of(answer) == (401, "unauthenticated"), headers
            assert answer.headers["www-authenticate"].startswith("Bearer")
        assert (await client.get("/healthz")).status_code == 200


# --- OpenAPI ---


def test_operations_are_named_for_generated_clients(gateways: Gateways) -> None:
    document = gateways.build().openapi()
    operations = [operation for path in document["paths"].values() for operation in path.values()]
    assert {operation["operationId"] for operation in operations} >= {"get_job", "create_job", "get_health"}
    assert all(operation["tags"] for operation in operations)
    assert {tag["name"] for tag in document["tags"]} == {"jobs", "operations"}


def test_problems_are_described_where_they_are_sent(gateways: Gateways) -> None:
    document = gateways.build().openapi()
    schemas = document["components"]["schemas"]
    assert "Problem" in schemas
    assert not {"HTTPValidationError", "ValidationError"} & set(schemas)
    get_job_responses = document["paths"]["/v1/jobs/{job_id}"]["get"]["responses"]
    assert set(get_job_responses) == {"200", "404", "422", "default"}
    for status in ("404", "422", "default"):
        assert list(get_job_responses[status]["content"]) == ["application/problem+json"]


def test_security_is_described_only_where_keys_are_needed(gateways: Gateways) -> None:
    assert "securitySchemes" not in gateways.build().openapi()["components"]
    document = gateways.build({"require_api_keys": True}).openapi()
    assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
    assert document["security"] == [{"bearer": []}, {"apiKey": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "security" not in document["paths"]["/v1/jobs/{job_id}"]["get"]


# --- size ---


async def test_a_gateway_process_stays_small() -> None:
    """Importing the ground that gateways stand on leaves a gateway room in the 200 MB it may take."""
    code = (
        "import services.runtime.app, sys, psutil; print(psutil.Process().memory_info().rss);"
        "print([m for m in ('numpy', 'tensorflow', 'ray', 'boto3') if m in sys.modules])"
    )
    root = Path(__file__).parents[3]
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=root, check=True
    )
    size_bytes, heavy = done.stdout.splitlines()
    assert int(size_bytes) < 120_000_000
    assert heavy == "[]"
