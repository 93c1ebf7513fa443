"""What `rekindle doctor` finds wrong, and that it looks no further than that makes sense."""

from collections.abc import Mapping
from email.utils import formatdate
from importlib.metadata import version
from time import time
from typing import Any

import httpx2
import pytest

from services.cli.doctor import Verdict, examine
from services.client import Rekindle

RELEASE = version("rekindle")
READY = {"status": "ready", "checks": ["database", "bucket"], "unavailable": {}}
NOTHING = {"items": [], "next_cursor": None}


class Server(httpx2.BaseTransport):
    """Answers by path; an `int` in place of a document is the status of a problem."""

    def __init__(self, answers: Mapping[str, Any], clock_ahead_s: float = 0) -> None:
        self.asked: list[str] = []
        self._answers = {
            "/healthz": {"status": "ok", "release": RELEASE},
            "/readyz": READY,
            "/v1/models": NOTHING,
            "/v1/training-jobs": NOTHING,
            **answers,
        }
        self._date = formatdate(time() + clock_ahead_s, usegmt=True)

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request.url.path)
        answer = self._answers[request.url.path]
        if isinstance(answer, int):
            code = {401: "unauthenticated", 503: "unavailable"}[answer]
            details = {"failed": {"bucket": "no answer within 2 s"}}
            problem = {"code": code, "detail": f"this is {code}", "status": answer, "details": details}
            return httpx2.Response(answer, json=problem)
        return httpx2.Response(200, json=answer, headers={"date": self._date})


def findings(server: Server, model: str | None = None) -> dict[str, tuple[Verdict, str]]:
    with Rekindle("http://server", http=server, patience_s=0) as client:
        return {each.what: (each.verdict, each.message) for each in examine(client, model)}


def test_a_server_that_is_well_is_all_green() -> None:
    found = findings(Server({}))
    assert list(found) == ["server", "release", "database", "bucket", "key", "jobs"]
    assert {verdict for verdict, _ in found.values()} == {Verdict.OK}


def test_where_nobody_answers_that_is_all() -> None:
    class Nobody(httpx2.BaseTransport):
        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("refused")

    with Rekindle("http://server", http=Nobody(), patience_s=0) as client:
        (only,) = examine(client)
    assert (only.what, only.verdict) == ("server", Verdict.FAILED)
    assert "refused" in only.message


def test_what_the_server_cannot_reach_is_named_with_what_to_do() -> None:
    found = findings(Server({"/readyz": 503}))
    assert found["bucket"][0] is Verdict.FAILED
    assert found["bucket"][1].startswith("no answer within 2 s; nothing can be read or kept")
    found = findings(Server({"/readyz": READY | {"unavailable": {"ray": "refused"}}}))
    assert found["ray"][0] is Verdict.WARNING


def test_a_bad_key_is_told_and_ends_it() -> None:
    server = Server({"/v1/models": 401})
    found = findings(server, "flowers")
    assert found["key"] == (Verdict.FAILED, "this is unauthenticated")
    assert server.asked == ["/healthz", "/readyz", "/v1/models"]


@pytest.mark.parametrize(("ahead_s", "told"), [(0, False), (300, True), (-300, True)])
def test_clocks_that_differ_are_told(ahead_s: float, *, told: bool) -> None:
    assert ("clock" in findings(Server({}, ahead_s))) is told


def test_another_release_is_a_warning() -> None:
    found = findings(Server({"/healthz": {"status": "ok", "release": "99.0"}}))
    assert found["release"][0] is Verdict.WARNING
    assert "99.0" in found["release"][1]


def test_a_model_is_asked_with_an_image_that_it_can_read() -> None:
    answer = {"model_name": "flowers", "version": 3, "results": []}
    assert findings(Server({"/v1/models/flowers/predict": answer}), "flowers")["prediction"] == (
        Verdict.OK,
        "answered by flowers version 3",
    )
    assert findings(Server({"/v1/models/flowers/predict": 503}), "flowers")["prediction"][0] is Verdict.FAILED
