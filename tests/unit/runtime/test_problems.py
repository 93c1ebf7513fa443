"""Every error has one place in HTTP, and shows what helps the caller and nothing that helps an attacker."""

import importlib
import pkgutil
from collections.abc import Iterator

import pytest
from fastapi import FastAPI, Request
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.testclient import TestClient

import services.contracts
import services.inference
import services.runtime
import services.training
from services.contracts.errors import (
    CallerError,
    ClassTooSmall,
    Conflict,
    CorruptObject,
    DatabaseUnavailable,
    InternalError,
    NotFound,
    RekindleError,
    RetryLater,
    SourceUnreadable,
    Unauthenticated,
)
from services.runtime.problems import PROBLEM_KINDS, install_problem_handlers, problem_responses


def error_tree(root: type[RekindleError] = RekindleError) -> Iterator[type[RekindleError]]:
    yield root
    for child in root.__subclasses__():
        yield from error_tree(child)


def import_gateways() -> None:
    """Brings errors that modules of the gateways add to the tree into it."""
    for package in (services.contracts, services.runtime, services.training, services.inference):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "migrations" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)


def test_every_error_has_a_status_that_fits_its_branch() -> None:
    import_gateways()
    for error in set(error_tree()):
        assert error.code in PROBLEM_KINDS, f"{error.__name__}: add its code {error.code!r} to PROBLEM_KINDS"
        status = PROBLEM_KINDS[error.code].status
        if issubclass(error, CallerError):
            assert 400 <= status < 500, error
        if issubclass(error, RetryLater):
            assert status == 503, error
        if issubclass(error, InternalError):
            assert status == 500, error


def test_no_two_errors_share_a_code_unless_one_is_the_others_base() -> None:
    by_code: dict[str, type[RekindleError]] = {}
    for error in error_tree():
        first = by_code.setdefault(error.code, error)
        assert issubclass(error, first) or {first, error} == {RekindleError, InternalError}, (first, error)


class Body(BaseModel):
    epochs: int


RAISED: dict[str, Exception] = {
    "caller": ClassTooSmall("class 'cat' has 1 image: add at least one more", {"label": "cat"}),
    "conflict": Conflict("the alias moved"),
    "missing": NotFound("no job 'job_1'"),
    "unauthenticated": Unauthenticated("send a key"),
    "later": DatabaseUnavailable("the database does not answer: try again"),
    "bug": InternalError("secret internals", {"secret": "internals"}),
    "corrupt": CorruptObject("secret internals"),
    "unhandled": ZeroDivisionError("secret internals"),
    "teapot": HTTPException(418, "I'm a teapot"),
    "gateway": HTTPException(502),
}


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    install_problem_handlers(app)

    @app.get("/raise/{name}")
    async def raise_it(name: str) -> None:
        raise RAISED[name]

    @app.post("/body")
    async def take_body(body: Body, request: Request) -> int:
        return body.epochs

    return TestClient(app, raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("caller", 422, "class_too_small"),
        ("conflict", 409, "conflict"),
        ("missing", 404, "not_found"),
        ("unauthenticated", 401, "unauthenticated"),
        ("later", 503, "database_unavailable"),
        ("bug", 500, "internal_error"),
        ("corrupt", 500, "corrupt_object"),
        ("unhandled", 500, "internal_error"),
        ("teapot", 418, "invalid_request"),
        ("gateway", 502, "internal_error"),
    ],
)
def test_an_error_becomes_its_problem(client: TestClient, name: str, status: int, code: str) -> None:
    response = client.get(f"/raise/{name}")
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert (problem["status"], problem["code"]) == (status, code)
    assert problem["type"] == f"urn:rekindle:problem:{code}"
    assert problem["instance"] == f"/raise/{name}"
    assert problem["title"]
    assert problem["detail"]


def test_the_caller_reads_what_to_do_and_programs_read_details(client: TestClient) -> None:
    problem = client.get("/raise/caller").json()
    assert problem["detail"] == "class 'cat' has 1 image: add at least one more"
    assert problem["details"] == {"label": "cat"}


@pytest.mark.parametrize("name", ["bug", "corrupt", "unhandled"])
def test_internals_stay_inside(client: TestClient, name: str) -> None:
    response = client.get(f"/raise/{name}")
    assert "internals" not in response.text
    assert "ZeroDivision" not in response.text


def test_what_may_be_tried_again_says_when(client: TestClient) -> None:
    assert int(client.get("/raise/later").headers["retry-after"]) > 0
    assert "retry-after" not in client.get("/raise/caller").headers


def test_a_missing_key_is_asked_for(client: TestClient) -> None:
    assert client.get("/raise/unauthenticated").headers["www-authenticate"].startswith("Bearer")


def test_a_body_of_the_wrong_form_names_each_field(client: TestClient) -> None:
    response = client.post("/body", json={"epochs": "many"})
    assert response.status_code == 422
    problem = response.json()
    assert problem["code"] == "validation_failed"
    assert [error["location"] for error in problem["errors"]] == [["body", "epochs"]]
    assert "epochs" in problem["detail"]
    assert "many" not in problem["errors"][0]["message"]


def test_a_body_that_is_not_json_is_a_problem(client: TestClient) -> None:
    response = client.post("/body", content=b"{", headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["code"]) == (422, "validation_failed")


def test_a_path_or_method_that_does_not_exist_is_a_problem(client: TestClient) -> None:
    missing = client.get("/nothing")
    assert (missing.status_code, missing.json()["code"]) == (404, "not_found")
    assert "/nothing" in missing.json()["detail"]
    wrong = client.delete("/body")
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"
    assert "use POST" in wrong.json()["detail"]


def test_documented_responses_are_grouped_by_status() -> None:
    responses = problem_responses(NotFound, ClassTooSmall, SourceUnreadable, DatabaseUnavailable)
    assert list(responses) == [404, 422, 503]
    assert "class_too_small" in str(responses[422]["description"])
    assert "source_unreadable" in str(responses[422]["description"])
