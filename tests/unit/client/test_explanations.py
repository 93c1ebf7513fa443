"""Explanations by the client and the command line: what is asked, and what is made of the answer."""

from pathlib import Path

import httpx2
import pytest
from typer.testing import CliRunner

from services.cli.explain import app
from services.client import ApiError, ExplainedPicture, Rekindle
from tests.unit.client.test_transport import Server, problem

HEADERS = {"x-rekindle-version": "3", "x-rekindle-label": "r%C3%B6slein%20rot", "x-rekindle-probability": "0.75"}
PICTURE = httpx2.Response(200, content=b"PNG", headers=HEADERS)
ARRAY = {
    "model_name": "flowers",
    "version": 3,
    "image": "image-0",
    "label": "rose",
    "probability": 0.75,
    "index": 1,
    "height": 1,
    "width": 2,
    "map": [[0.0, 1.0]],
}


def test_a_picture_comes_with_what_it_shows() -> None:
    server = Server(problem(503, "overloaded"), PICTURE)
    with Rekindle("http://server", http=server) as rekindle:
        picture = rekindle.explain_picture("flowers", b"rose", label="röslein rot", alias="production")
    assert picture == ExplainedPicture(png=b"PNG", label="röslein rot", probability=0.75, version=3)
    url = server.requests[-1].url
    assert url.path == "/v1/models/flowers/explain"
    assert dict(url.params) == {"label": "röslein rot", "alias": "production", "format": "png"}


def test_an_array_is_read() -> None:
    server = Server(httpx2.Response(200, json=ARRAY))
    with Rekindle("http://server", http=server) as rekindle:
        assert rekindle.explain("flowers", b"rose").map == [[0.0, 1.0]]
    assert dict(server.requests[0].url.params) == {"format": "json"}


def test_an_answer_without_its_headers_is_not_taken_for_a_picture() -> None:
    with (
        Rekindle("http://server", http=Server(httpx2.Response(200, content=b"<html>"))) as rekindle,
        pytest.raises(ApiError, match="did not answer like a Rekindle"),
    ):
        rekindle.explain_picture("flowers", b"rose")


def test_the_command_names_a_file_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["flowers", str(tmp_path / "missing.jpg")])
    assert isinstance(result.exception, FileNotFoundError)
