"""The client against a server of functions: retries, problems, and what is sent again."""

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2
import pytest
from pydantic import TypeAdapter

from services.client.errors import ApiError, Unreachable
from services.client.transport import FIRST_CONTACT_S, Patience, Transport
from services.contracts.datasets import NewDataset, UploadSource

ANYTHING = TypeAdapter(dict[str, int])
Answer = httpx2.Response | httpx2.TransportError


@dataclass
class Clock:
    """Time that passes only when somebody sleeps."""

    now_s: float = 0.0
    waits: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.waits.append(seconds)


class Server(httpx2.BaseTransport):
    """Gives one answer after the other, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: Answer | Callable[[httpx2.Request], Answer]) -> None:
        self.requests: list[httpx2.Request] = []
        self._answers = itertools.chain(answers, itertools.repeat(answers[-1]))

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        answer = next(self._answers)
        if callable(answer):
            answer = answer(request)
        if isinstance(answer, httpx2.TransportError):
            raise answer
        return answer


def problem(status: int, code: str, **more: object) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "detail": f"this is {code}", "request_id": "r1", **more})


def make(
    server: Server, clock: Clock | None = None, *, patience_s: float = 30, api_key: str | None = None
) -> Transport:
    clock = clock or Clock()
    patience = Patience(patience_s, lambda: clock.now_s, clock.sleep)
    return Transport("http://server", api_key=api_key, timeout_s=5, patience=patience, http=server)


def ok(value: int = 1) -> httpx2.Response:
    return httpx2.Response(200, json={"value": value})


def test_a_download_is_whole_or_not_there_at_all(tmp_path: Path) -> None:
    def breaks_off() -> Iterator[bytes]:
        yield b"half of "
        raise httpx2.ReadError("gone")

    server = Server(
        httpx2.Response(200, content=breaks_off()), problem(503, "overloaded"), httpx2.Response(200, text="all")
    )
    file = tmp_path / "labels.csv"
    make(server).download("/v1/x", file, query={"format": "csv"})
    assert file.read_text() == "all"
    assert [str(request.url) for request in server.requests] == ["http://server/v1/x?format=csv"] * 3
    with pytest.raises(ApiError, match="this is not_found"):
        make(Server(problem(404, "not_found"))).download("/v1/x", file, query={})
    with pytest.raises(Unreachable):
        make(Server(httpx2.Response(200, content=breaks_off()), httpx2.ConnectError("no"))).download(
            "/v1/x", file, query={}
        )
    assert [path.name for path in tmp_path.iterdir()] == ["labels.csv"]
    assert file.read_text() == "all"


def test_an_answer_is_parsed() -> None:
    server = Server(ok(7))
    assert make(server).call(ANYTHING, "GET", "/v1/x", query={"limit": 3, "cursor": None}) == {"value": 7}
    assert str(server.requests[0].url) == "http://server/v1/x?limit=3"


def test_a_problem_becomes_an_error_with_its_fields() -> None:
    with pytest.raises(ApiError) as raised:
        make(Server(problem(409, "conflict", details={"state": "ready"}))).call(ANYTHING, "GET", "/")
    error = raised.value
    assert (error.status, error.code, error.message) == (409, "conflict", "this is conflict")
    assert (error.details, error.request_id) == ({"state": "ready"}, "r1")


def test_fields_that_do_not_fit_are_named() -> None:
    errors = [{"location": ["body", "epochs"], "message": "Input should be at least 1"}]
    with pytest.raises(ApiError, match=r"body\.epochs: Input should be at least 1"):
        make(Server(problem(422, "validation_failed", errors=errors))).call(ANYTHING, "POST", "/")


def test_an_answer_that_is_no_problem_is_still_an_error() -> None:
    with pytest.raises(ApiError, match="502"):
        make(Server(httpx2.Response(502, text="<html>Bad gateway</html>")), patience_s=0).call(ANYTHING, "GET", "/")


def test_another_program_at_the_url_is_named_as_such() -> None:
    with pytest.raises(ApiError, match="check the URL"):
        make(Server(httpx2.Response(200, text="<html>"))).call(ANYTHING, "GET", "/")


def test_unavailable_is_tried_again_after_the_time_that_the_server_asks_for() -> None:
    clock = Clock()
    busy = problem(503, "overloaded")
    busy.headers["retry-after"] = "4"
    server = Server(busy, ok())
    assert make(server, clock).call(ANYTHING, "GET", "/") == {"value": 1}
    assert clock.waits == [4.0]


def test_unavailable_for_too_long_is_the_servers_problem() -> None:
    clock = Clock()
    with pytest.raises(ApiError) as raised:
        make(Server(problem(503, "overloaded")), clock, patience_s=20).call(ANYTHING, "GET", "/")
    assert raised.value.code == "overloaded"
    assert 10 < clock.now_s <= 20


@pytest.mark.parametrize("status", [400, 401, 404, 409, 422, 500])
def test_what_would_fail_again_is_not_tried_again(status: int) -> None:
    server = Server(problem(status, "some_code"))
    with pytest.raises(ApiError):
        make(server).call(ANYTHING, "GET", "/")
    assert len(server.requests) == 1


def test_a_post_that_is_repeated_carries_the_same_idempotency_key() -> None:
    server = Server(httpx2.ReadTimeout("lost"), problem(503, "unavailable"), ok())
    make(server).call(ANYTHING, "POST", "/v1/datasets", body=NewDataset(name="a", source=UploadSource(type="upload")))
    keys = {request.headers["idempotency-key"] for request in server.requests}
    assert len(server.requests) == 3
    assert len(keys) == 1


def test_two_posts_have_different_idempotency_keys() -> None:
    server = Server(ok())
    transport = make(server)
    for _ in range(2):
        transport.call(ANYTHING, "POST", "/")
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 2


def test_a_discriminator_is_sent() -> None:
    server = Server(ok())
    body = NewDataset(name="a", source=UploadSource(type="upload"))
    make(server).call(ANYTHING, "POST", "/", body=body)
    assert json.loads(server.requests[0].content) == {"name": "a", "source": {"type": "upload"}}


def test_a_server_that_was_never_there_is_given_up_soon() -> None:
    clock = Clock()
    with pytest.raises(Unreachable, match="rekindle up"):
        make(Server(httpx2.ConnectError("refused")), clock, patience_s=300).call(ANYTHING, "GET", "/")
    assert clock.now_s <= FIRST_CONTACT_S


def test_a_server_that_restarts_is_waited_for() -> None:
    clock = Clock()
    server = Server(ok(), *[httpx2.ConnectError("refused")] * 8, ok(2))
    transport = make(server, clock, patience_s=60)
    transport.call(ANYTHING, "GET", "/")
    assert transport.call(ANYTHING, "GET", "/") == {"value": 2}
    assert clock.now_s > FIRST_CONTACT_S


def test_the_key_goes_to_the_server_and_never_to_a_presigned_url(tmp_path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"content")
    server = Server(httpx2.Response(200))
    transport = make(server, api_key="rk_secret")
    transport.put_file("/v1/datasets/d/files/a/a.jpg", file)
    transport.put_file("https://bucket.example/a.jpg?signature=1", file)
    own, presigned = server.requests
    assert own.headers["authorization"] == "Bearer rk_secret"
    assert "authorization" not in presigned.headers
    assert own.content == presigned.content == b"content"
    assert presigned.headers["content-length"] == "7"


def test_a_file_that_is_sent_again_is_sent_whole(tmp_path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"content")
    server = Server(httpx2.WriteError("lost"), httpx2.Response(201))
    make(server).put_file("/v1/x", file)
    assert [request.content for request in server.requests] == [b"content", b"content"]
