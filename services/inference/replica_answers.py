"""What the answers of replicas and of Serve's proxy mean. The contract is `contracts/serving.py`."""

from dataclasses import dataclass

import httpx2
from pydantic import ValidationError

from services.contracts.errors import (
    ImageRejected,
    InternalError,
    LabelUnknown,
    ModelLoading,
    NotFound,
    ObjectStoreUnavailable,
    Overloaded,
    RekindleError,
)
from services.contracts.explanations import PNG
from services.contracts.predictions import Prediction
from services.contracts.serving import (
    PREDICTION_HEADER,
    ReplicaAnswers,
    ReplicaError,
    ReplicaExplanation,
    ReplicaPrediction,
)

_FINAL: dict[str, type[RekindleError]] = {
    error.code: error for error in (ImageRejected, LabelUnknown, NotFound, Overloaded, ObjectStoreUnavailable)
}


@dataclass(frozen=True, slots=True)
class NotUp:
    """Nobody could answer; trying again may help."""

    reason: str
    crashed: bool = False
    """A replica or proxy may have died with the request."""
    timed_out: bool = False
    """The request was taken and waited in a queue until its deadline."""


ImageAnswer = list[Prediction] | NotUp


@dataclass(frozen=True, slots=True)
class ExplainedMap:
    """An explanation as an array."""

    prediction: Prediction
    rows: list[list[float]]


@dataclass(frozen=True, slots=True)
class ExplainedPicture:
    """An explanation drawn over its image."""

    prediction: Prediction
    png: bytes


def read_answer(response: httpx2.Response) -> ImageAnswer:
    """What a response of Serve's proxy to one image means.

    Raises what the replica raised (`ImageRejected`, `NotFound`, `Overloaded`, `ObjectStoreUnavailable`), `Overloaded`
    when the proxy's queue is full, and `InternalError` for an answer that the contract does not know.
    """
    return read_predictions(response.content) if response.status_code == 200 else _read_refusal(response)


def read_answers(response: httpx2.Response, count: int) -> list[ImageAnswer | Exception]:
    """What a response to a batch of `count` images means for each: as `read_answer`, with its errors as values.

    Raises what concerns the whole batch.
    """
    if response.status_code != 200:
        return [_read_refusal(response)] * count
    try:
        answers = ReplicaAnswers.model_validate_json(response.content).answers
    except ValidationError as error:
        raise InternalError(f"a replica answered something else than predictions: {error}") from error
    if len(answers) != count:
        raise InternalError(f"a replica gave {len(answers)} answers to {count} images")
    return [_read_one(each) for each in answers]


def _read_one(answer: ReplicaPrediction | ReplicaError) -> ImageAnswer | Exception:
    if isinstance(answer, ReplicaPrediction):
        return answer.predictions
    return NotUp(answer.message) if answer.code == ModelLoading.code else _error(answer)


def read_predictions(body: bytes | str) -> list[Prediction]:
    """A `ReplicaPrediction`. Raises `InternalError` for anything else."""
    try:
        return ReplicaPrediction.model_validate_json(body).predictions
    except ValidationError as error:
        raise InternalError(f"a replica answered something else than predictions: {error}") from error


def read_explanation(response: httpx2.Response) -> ExplainedMap | ExplainedPicture | NotUp:
    """What a response to a question for an explanation means: as `read_answer`, and `LabelUnknown`."""
    if response.status_code != 200:
        return _read_refusal(response)
    try:
        if response.headers.get("content-type", "") == PNG:
            prediction = Prediction.model_validate_json(response.headers.get(PREDICTION_HEADER, ""))
            return ExplainedPicture(prediction, response.content)
        explanation = ReplicaExplanation.model_validate_json(response.content)
    except ValidationError as error:
        raise InternalError(f"a replica answered something else than an explanation: {error}") from error
    return ExplainedMap(explanation.prediction, explanation.map)


def _read_refusal(response: httpx2.Response) -> NotUp:
    try:
        refused = ReplicaError.model_validate_json(response.content)
    except ValidationError:
        return _read_proxy_answer(response)
    raise _error(refused)


def _error(refused: ReplicaError) -> RekindleError:
    if refused.code in _FINAL:
        return _FINAL[refused.code](refused.message, refused.details)
    return InternalError(f"a replica answered {refused.code}: {refused.message}")


def _read_proxy_answer(response: httpx2.Response) -> NotUp:
    """What Serve's proxy says by itself: plain text."""
    match response.status_code:
        case 404:
            return NotUp("its application is not deployed yet")
        case 503 if "retry-after" in response.headers:
            raise Overloaded("all replicas are busy and their queue is full: try again")
        case 502 | 503 | 504:
            return NotUp("no replica is up")
        case 408 | 499 | 500:
            return NotUp(f"Ray Serve answered with status {response.status_code}", crashed=True)
        case status:
            raise InternalError(f"Ray Serve answered with status {status}: {response.text[:500]}")
