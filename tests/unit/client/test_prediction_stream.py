"""Streamed predictions by the client: each image once, also across answers that break off."""

import json
from collections.abc import Iterator, Mapping

import httpx2
import pytest

from services.client.errors import ApiError, Unreachable
from services.client.prediction_stream import StreamedImage, predict_each
from services.contracts.predictions import ImageFailed, ImagePredicted
from tests.unit.client.test_transport import Answer, Clock, Server, make, problem

START = {"type": "start", "model_name": "flowers", "version": 3, "image_count": 3}
END = {"type": "end", "failed_count": 0}
IMAGES = [b"zero", b"one", b"two"]


def labelled(index: int, label: str = "rose") -> dict[str, object]:
    predictions = [{"label": label, "probability": 1.0, "index": 0}]
    return {"type": "image", "status": "ok", "index": index, "image": f"image-{index}", "predictions": predictions}


def unusable(index: int) -> dict[str, object]:
    return {"type": "image", "status": "error", "index": index, "image": "x", "code": "image_rejected", "message": "no"}


def broken(status: int, code: str, retry_after_s: int | None = None) -> dict[str, object]:
    return {
        "type": "problem",
        "problem": {"status": status, "code": code, "detail": f"this is {code}"},
        "retry_after_s": retry_after_s,
    }


def lines(*parts: Mapping[str, object]) -> str:
    return "".join(json.dumps(part) + "\n" for part in parts)


class Cut(httpx2.SyncByteStream):
    """Sends some lines, then loses the connection."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __iter__(self) -> Iterator[bytes]:
        yield self._text.encode()
        raise httpx2.ReadError("connection lost")


def whole(*parts: Mapping[str, object]) -> httpx2.Response:
    return httpx2.Response(200, text=lines(*parts))


def cut(*parts: Mapping[str, object]) -> httpx2.Response:
    return httpx2.Response(200, stream=Cut(lines(*parts)))


def run(server: Server, clock: Clock | None = None, *, patience_s: float = 30) -> list[StreamedImage]:
    transport = make(server, clock, patience_s=patience_s)
    return list(predict_each(transport, "flowers", IMAGES, top_k=None, version=None, alias="production"))


def sent(request: httpx2.Request) -> list[bytes]:
    return [image for image in IMAGES if b"\r\n\r\n" + image + b"\r\n" in request.content]


def test_images_come_as_they_are_ready_with_their_place_and_version() -> None:
    server = Server(whole(START, labelled(2), unusable(0), labelled(1, "tulip"), END))
    two, zero, one = run(server)
    assert [each.index for each in (two, zero, one)] == [2, 0, 1]
    assert isinstance(zero.result, ImageFailed)
    assert isinstance(one.result, ImagePredicted)
    assert one.result.predictions[0].label == "tulip"
    assert {(each.model_name, each.version) for each in (two, zero, one)} == {("flowers", 3)}
    (request,) = server.requests
    assert request.headers["accept"] == "application/x-ndjson"
    assert str(request.url) == "http://server/v1/models/flowers/predict?alias=production"


@pytest.mark.parametrize(
    "first",
    [
        cut(START, labelled(1)),
        whole(START, labelled(1)),
        whole(START, labelled(1), broken(503, "overloaded", 4)),
    ],
    ids=["connection lost", "no last line", "problem"],
)
def test_what_is_missing_is_asked_for_again_of_the_same_version(first: Answer) -> None:
    server = Server(first, whole(START, labelled(1, "two"), labelled(0, "zero"), END))
    found = {each.index: each.result for each in run(server)}
    assert sorted(found) == [0, 1, 2]
    assert [found[n].predictions[0].label for n in (0, 1, 2)] == ["zero", "rose", "two"]
    again = server.requests[1]
    assert sent(again) == [b"zero", b"two"]
    assert str(again.url) == "http://server/v1/models/flowers/predict?version=3"


def test_the_server_says_when_to_ask_again() -> None:
    clock = Clock()
    busy = problem(503, "overloaded")
    busy.headers["retry-after"] = "7"
    server = Server(
        busy,
        whole(START, labelled(0), broken(503, "overloaded", 5)),
        whole(START, labelled(0), labelled(1), END),
    )
    assert len(run(server, clock)) == 3
    assert clock.waits == [7.0, 5.0]


@pytest.mark.parametrize(
    "answer", [problem(404, "not_found"), whole(START, labelled(0), broken(500, "internal_error"))]
)
def test_what_would_fail_again_is_raised(answer: Answer) -> None:
    server = Server(answer)
    with pytest.raises(ApiError, match="this is"):
        run(server)
    assert len(server.requests) == 1


def test_being_busy_for_too_long_is_raised() -> None:
    clock = Clock()
    with pytest.raises(ApiError) as raised:
        run(Server(problem(503, "overloaded")), clock, patience_s=20)
    assert raised.value.code == "overloaded"
    assert 10 < clock.now_s <= 20


def test_a_server_that_was_never_there_is_unreachable() -> None:
    with pytest.raises(Unreachable, match="rekindle up"):
        run(Server(httpx2.ConnectError("refused")))


@pytest.mark.parametrize(
    "answer",
    [
        whole({"model_name": "flowers"}),
        whole(labelled(0)),
        whole(START, labelled(7)),
        whole(START, labelled(0), labelled(0)),
        whole(START, labelled(0), END),
    ],
    ids=["another form", "no first line", "no such image", "an image twice", "images missing"],
)
def test_an_answer_that_makes_no_sense_is_not_asked_for_again(answer: Answer) -> None:
    server = Server(answer)
    with pytest.raises(ApiError, match="check the URL"):
        run(server)
    assert len(server.requests) == 1
