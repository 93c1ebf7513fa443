"""The committed OpenAPI documents: what clients are generated from."""

import json
from pathlib import Path
from typing import Any

import pytest

from services.local.openapi import APPLICATIONS, openapi_documents

FOLDER = Path(__file__).parents[2] / "docs" / "openapi"
PROBLEM = "#/components/schemas/Problem"


@pytest.fixture(scope="module")
def documents() -> dict[str, str]:
    return openapi_documents()


def operations(name: str) -> list[tuple[str, dict[str, Any]]]:
    document = json.loads((FOLDER / name).read_text())
    return [
        (f"{method.upper()} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


OPERATIONS = operations("rekindle.json")


@pytest.mark.parametrize("name", APPLICATIONS)
def test_the_committed_document_is_what_the_code_describes(name: str, documents: dict[str, str]) -> None:
    committed = (FOLDER / name).read_text()
    assert committed == documents[name], f"docs/openapi/{name} is not what the code describes: run `make openapi`"


def test_the_environment_does_not_show_in_the_document(
    monkeypatch: pytest.MonkeyPatch, documents: dict[str, str]
) -> None:
    monkeypatch.setenv("REKINDLE_REQUIRE_API_KEYS", "true")
    monkeypatch.setenv("REKINDLE_MAX_IMAGES_PER_REQUEST", "3")
    assert openapi_documents() == documents


def test_both_gateways_are_in_the_combined_document() -> None:
    combined = {name for name, _ in OPERATIONS}
    assert {name for name, _ in operations("training.json")} < combined
    assert {name for name, _ in operations("inference.json")} < combined


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_every_operation_is_described(name: str, operation: dict[str, Any]) -> None:
    for field in ("operationId", "summary", "description", "tags"):
        assert operation.get(field), f"{name} has no {field}"
    assert operation["operationId"].isidentifier()
    problems = [
        status
        for status, response in operation["responses"].items()
        if response.get("content", {}).get("application/problem+json", {}).get("schema", {}).get("$ref") == PROBLEM
    ]
    assert "default" in problems, f"{name} does not say what problems look like"
    assert set(problems) == {status for status in operation["responses"] if not status.startswith("2")}


@pytest.mark.parametrize(("name", "operation"), OPERATIONS, ids=[name for name, _ in OPERATIONS])
def test_every_success_has_a_shape(name: str, operation: dict[str, Any]) -> None:
    for status, response in operation["responses"].items():
        if status.startswith("2") and status != "204":
            assert response.get("content"), f"{name} answers {status} with nothing"


def test_operation_ids_are_unique() -> None:
    ids = [operation["operationId"] for _, operation in OPERATIONS]
    assert len(ids) == len(set(ids))
