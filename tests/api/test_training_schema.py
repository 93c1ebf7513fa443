"""Every route keeps what the OpenAPI document says, whatever it is sent, and never answers with a bug of ours."""

from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.runtime.app import create_app
from services.runtime.database import Database
from services.runtime.objects import open_store
from services.runtime.settings import Settings
from services.training.main import build_parts
from tests.servers.fake_ray import FakeRay

STREAM = "/v1/training-jobs/{job_id}/events"


def make_app(folder: Path) -> FastAPI:
    made = Settings(home=folder, allow_local_sources=False)
    database = Database(made.database_url)
    parts = build_parts(made, database, open_store(made.bucket_uri), FakeRay())
    return create_app(
        service="training",
        title="t",
        description="d",
        version="0",
        settings=made,
        routers=parts.routers,
        database=database,
        lifespan=parts.lifespan,
    )


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(tmp_path_factory.mktemp("home")))


def operations() -> list[tuple[str, str]]:
    """Every method and path but the event stream, which does not end by itself."""
    document = make_app(Path("unused")).openapi()
    found = [(path, method) for path, methods in document["paths"].items() for method in methods]
    return [each for each in found if each[0] != STREAM]


@pytest.mark.parametrize(("path", "method"), operations())
def test_no_request_breaks_the_contract(schema: Any, path: str, method: str) -> None:
    @settings(
        max_examples=25,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        derandomize=True,
    )
    @given(schema[path][method].as_strategy())
    def check(case: schemathesis.Case) -> None:
        case.call_and_validate(
            checks=[
                not_a_server_error,
                status_code_conformance,
                content_type_conformance,
                response_schema_conformance,
            ]
        )

    check()
