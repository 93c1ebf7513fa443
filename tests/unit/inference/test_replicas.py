"""What the answers of replicas and of Serve's proxy mean."""

import httpx2
import pytest

from services.contracts.errors import (
    ImageRejected,
    InternalError,
    LabelUnknown,
    NotFound,
    ObjectStoreUnavailable,
    Overloaded,
)
from services.contracts.predictions import Prediction
from services.inference.replica_answers import NotUp, read_answer, read_answers, read_explanation


def replica(status: int, code: str) -> httpx2.Response:
    return httpx2.Response(status, json={"code": code, "message": "why", "details": {"a": 1}})


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (replica(422, "image_rejected"), ImageRejected),
        (replica(422, "label_unknown"), LabelUnknown),
        (replica(404, "not_found"), NotFound),
        (replica(503, "overloaded"), Overloaded),
        (replica(503, "object_store_unavailable"), ObjectStoreUnavailable),
        # A gateway never asks these; if a replica says so, one of the two is wrong.
        (replica(422, "invalid_request"), InternalError),
        (replica(409, "conflict"), InternalError),
        (replica(500, "corrupt_object"), InternalError),
        (replica(418, "of_a_later_release"), InternalError),
        (httpx2.Response(503, text="dropped", headers={"Retry-After": "2"}), Overloaded),
        (httpx2.Response(200, json={"labels": []}), InternalError),
        (httpx2.Response(302, text="elsewhere"), InternalError),
    ],
)
def test_final_answers(response: httpx2.Response, error: type[Exception]) -> None:
    with pytest.raises(error):
        read_answer(response)


def test_the_replicas_words_reach_the_caller() -> None:
    with pytest.raises(ImageRejected) as caught:
        read_answer(replica(422, "image_rejected"))
    assert (caught.value.message, caught.value.details) == ("why", {"a": 1})


@pytest.mark.parametrize(
    ("status", "crashed"),
    [(404, False), (502, False), (503, False), (504, False), (408, True), (499, True), (500, True)],
)
def test_answers_that_are_waited_out(status: int, crashed: bool) -> None:
    answer = read_answer(httpx2.Response(status, text="Ray Serve's own words"))
    assert isinstance(answer, NotUp)
    assert answer.crashed is crashed


def test_predictions() -> None:
    body = {"predictions": [{"label": "a", "probability": 0.5, "index": 3}], "added_later": 1}
    (prediction,) = read_answer(httpx2.Response(200, json=body))
    assert (prediction.label, prediction.probability, prediction.index) == ("a", 0.5, 3)


def test_the_answers_to_a_batch_are_each_images_own() -> None:
    predictions = [{"label": "a", "probability": 0.5, "index": 3}]
    rejected = {"code": "image_rejected", "message": "why", "details": {}}
    unknown = {"code": "corrupt_object", "message": "why"}
    body = {"answers": [{"predictions": predictions}, rejected, unknown]}
    first, second, third = read_answers(httpx2.Response(200, json=body), 3)
    assert first == [Prediction(label="a", probability=0.5, index=3)]
    assert isinstance(second, ImageRejected)
    assert isinstance(third, InternalError)


def test_what_concerns_a_batch_concerns_each_image_of_it() -> None:
    answers = read_answers(httpx2.Response(500, text="Ray Serve's own words"), 2)
    assert [isinstance(each, NotUp) and each.crashed for each in answers] == [True, True]
    with pytest.raises(Overloaded):
        read_answers(replica(503, "overloaded"), 2)
    with pytest.raises(InternalError, match="1 answers to 2 images"):
        read_answers(httpx2.Response(200, json={"answers": [{"predictions": []}]}), 2)


@pytest.mark.parametrize(
    "answer",
    [
        httpx2.Response(200, json={"map": [[1.0]]}),
        httpx2.Response(200, content=b"PNG", headers={"content-type": "image/png"}),
        httpx2.Response(200, text="pong"),
    ],
)
def test_what_is_no_explanation_is_our_fault(answer: httpx2.Response) -> None:
    with pytest.raises(InternalError, match="something else than an explanation"):
        read_explanation(answer)
