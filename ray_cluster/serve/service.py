"""What a replica does with a request: `contracts/serving.py` on one trunk, for every model that is built on it.

The event loop only routes; decoding, the trunk and the tails run in threads.

Array axes: D feature.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from ray_cluster.serve.batching import Batcher
from ray_cluster.serve.classifier import Answer, Classifier, Question, ranked
from ray_cluster.serve.explainer import DrawnExplanation, Explainer, WhyQuestion
from ray_cluster.serve.model_tails import LabelledTail, TailKey, load_tail
from ray_cluster.serve.tail_cache import TailCache
from ray_cluster.vision.engines import Engine
from services.contracts.base import NAME_PATTERN
from services.contracts.errors import (
    CallerError,
    Conflict,
    InternalError,
    LabelUnknown,
    ModelLoading,
    NotFound,
    RekindleError,
    RetryLater,
)
from services.contracts.explanations import PNG, ExplanationFormat
from services.contracts.models import TrunkManifest
from services.contracts.predictions import NDJSON
from services.contracts.serving import (
    CHALLENGER_HEADER,
    PREDICTION_HEADER,
    ReplicaAnswers,
    ReplicaError,
    ReplicaExplanation,
    ReplicaPrediction,
    ReplicaQuestion,
    ReplicaScore,
    unpack,
)
from services.runtime.objects.protocol import ObjectStore

MAX_BATCH = 8
"""Images that one thread takes at a time. On a CPU a larger batch gains nothing and makes its first image wait."""
HEAD_PATIENCE_S = 0.2
"""How long a batch waits for a head that is read from the bucket."""
STUCK_AFTER_S = 60
"""A batch that runs longer means that the engine hangs: the health check fails and Serve replaces the replica."""

CHALLENGERS_AT_ONCE = 8
"""Challengers that are loaded or scored at a time; for more there is no room."""
CHALLENGERS_UNTIL = 0.5
"""How full the queue may be for challengers to be scored: they are the first that overload costs."""

EXPLANATIONS_WAITING = 16
"""Explanations that wait for the one that is computed; more are refused. One thread computes them, besides those of the
engines and with breaks, so however many are asked for, predictions lose a quarter of a thread."""
LABELS_SHOWN = 20
"""Of a version, to one who asks for a label that it does not have."""

Query = TypeVar("Query", bound=BaseModel)

# Serve's own logger: its handlers write structured lines to the replica's log.
log = logging.getLogger("ray.serve")


class PredictQuery(BaseModel):
    """The query of one call."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    top_k: int = Field(default=5, ge=1)


class ExplainQuery(BaseModel):
    """The query of one call for an explanation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(pattern=NAME_PATTERN)
    version: int = Field(ge=1)
    label: str | None = None
    format: ExplanationFormat = "json"


@dataclass(frozen=True, slots=True)
class Standing:
    """What a replica has in memory."""

    waiting: int
    """Images that wait for a thread."""
    heads: int
    head_bytes: int


class TrunkService:
    """Handles `POST …/predict`, `…/predict-batch` and `…/explain`. See `contracts/serving.py` for what it answers."""

    def __init__(
        self,
        store: ObjectStore,
        trunk: TrunkManifest,
        engines: Sequence[Engine],
        *,
        tail_cache_bytes: int,
        max_waiting: int,
        on_batch: Callable[[int, float], None] = lambda _images, _seconds: None,
    ) -> None:
        """`engines` all run `trunk`; as many threads share them.

        At most `max_waiting` images queue for a thread; models share the queue fairly, all versions of one together.
        `on_batch` is told of each batch how many images it had and how many seconds they took, in the batch's thread.
        """
        self._store = store
        self._trunk = trunk
        self._tails: TailCache[TailKey, LabelledTail] = TailCache(self._load_tail, tail_cache_bytes)
        self._challengers = 0
        classifier = Classifier(engines, trunk.image_size)

        def answer(questions: Sequence[Question]) -> Sequence[Answer | Exception]:
            started_at = time.perf_counter()
            answers = classifier.answer(questions)
            on_batch(len(questions), time.perf_counter() - started_at)
            return answers

        self._batcher: Batcher[Question, Answer] = Batcher(
            answer,
            workers=len(engines),
            max_batch=MAX_BATCH,
            max_waiting=max_waiting,
        )
        self._explanations: Batcher[WhyQuestion, ReplicaExplanation | DrawnExplanation] = Batcher(
            Explainer(store, trunk, classifier.features, busy=lambda: self._batcher.is_running).answer,
            workers=1,
            max_batch=1,
            max_waiting=EXPLANATIONS_WAITING,
        )

    async def handle(self, request: Request) -> Response:
        """Answers one request; never raises for what the contract knows."""
        try:
            call = _call_of(request)
            body = await request.body()
            if call == "predict-batch":
                return _json(200, await self._answer_batch(body))
            if call == "explain":
                return await self._explain(body, _parse(ExplainQuery, request.query_params))
            return await self._answer_one(body, _parse(PredictQuery, request.query_params), _challenger_of(request))
        except RekindleError as error:
            return _error_response(error)

    async def _answer_one(self, image: bytes, query: PredictQuery, challenger: int | None) -> Response:
        # The tail may have to be read from the bucket; the image is in memory by now, so it is not held up for long.
        tail = await self._tail_of(query)
        answer = await self._answer(image, query, tail, keep_features=challenger is not None)
        prediction = ReplicaPrediction(predictions=answer.predictions)
        if challenger is None or answer.features_D is None:
            return _json(200, prediction)
        key = TailKey(query.model, challenger)
        return StreamingResponse(self._lines(prediction, key, answer.features_D), media_type=NDJSON)

    async def _answer_batch(self, body: bytes) -> ReplicaAnswers:
        asked = unpack(body)
        return ReplicaAnswers(
            answers=await asyncio.gather(*(self._answer_one_of_many(question, image) for question, image in asked))
        )

    async def _answer_one_of_many(self, question: ReplicaQuestion, image: bytes) -> ReplicaPrediction | ReplicaError:
        try:
            query = _parse(PredictQuery, question.model_dump(exclude={"size_bytes"}))
            try:
                async with asyncio.timeout(HEAD_PATIENCE_S):
                    tail = await self._tail_of(query)
            except TimeoutError:  # loading goes on
                return _refusal(ModelLoading(f"model {query.model!r} version {query.version} is being loaded"))
            return ReplicaPrediction(predictions=(await self._answer(image, query, tail)).predictions)
        except RekindleError as error:
            return _refusal(error)

    async def _explain(self, image: bytes, query: ExplainQuery) -> Response:
        key = TailKey(query.model, query.version)
        tail = await self._tails.get(key)
        if query.label is not None and query.label not in tail.labels:
            raise _unknown(query.label, key, tail.labels)
        question = WhyQuestion(image, key, tail, query.label, drawn=query.format == "png")
        explained = await self._explanations.submit(question, flow=query.model)
        if isinstance(explained, ReplicaExplanation):
            return _json(200, explained)
        # In ASCII, as headers are: labels are not.
        prediction = json.dumps(explained.prediction.model_dump())
        return Response(explained.png, 200, {PREDICTION_HEADER: prediction}, PNG)

    @property
    def waiting_share(self) -> float:
        """How full the queue of images is, 0 to 1."""
        return self._batcher.waiting_share

    def standing(self) -> Standing:
        """As of now."""
        return Standing(self._batcher.waiting_count, len(self._tails), self._tails.used_bytes)

    def check_health(self) -> None:
        """Raises `InternalError` when the engine hangs."""
        running_s = max(self._batcher.longest_running_s(), self._explanations.longest_running_s())
        if running_s > STUCK_AFTER_S:
            raise InternalError(f"a batch has been running for {running_s:.0f} s")

    async def _tail_of(self, query: PredictQuery) -> LabelledTail:
        return await self._tails.get(TailKey(query.model, query.version))

    async def _answer(
        self, image: bytes, query: PredictQuery, tail: LabelledTail, *, keep_features: bool = False
    ) -> Answer:
        question = Question(image, tail, query.top_k, keep_features)
        return await self._batcher.submit(question, flow=query.model)

    async def _lines(
        self, prediction: ReplicaPrediction, challenger: TailKey, features_D: npt.NDArray[np.float32]
    ) -> AsyncGenerator[str, None]:
        yield prediction.model_dump_json() + "\n"
        score = await self._score(challenger, features_D)
        yield score.model_dump_json() + "\n"

    async def _score(self, challenger: TailKey, features_D: npt.NDArray[np.float32]) -> ReplicaScore:
        """What the challenger says of an image, from the features that are there already; never raises an error of
        ours."""
        if self._challengers >= CHALLENGERS_AT_ONCE or self.waiting_share > CHALLENGERS_UNTIL:
            return ReplicaScore(label=None, dropped=True)
        self._challengers += 1
        try:
            tail = await self._tails.get(challenger)
            (best,) = await asyncio.to_thread(ranked, tail, features_D, 1)
        except RekindleError as error:
            return ReplicaScore(label=None, error=f"{error.code}: {error.message}")
        finally:
            self._challengers -= 1
        return ReplicaScore(label=best.label)

    async def _load_tail(self, key: TailKey) -> LabelledTail:
        started_at = time.perf_counter()
        tail = await asyncio.to_thread(load_tail, self._store, self._trunk, key)
        log.info(
            "tail.loaded",
            extra={
                "model": key.model_name,
                "version": key.version,
                "size_bytes": tail.size_bytes,
                "duration_s": round(time.perf_counter() - started_at, 4),
            },
        )
        return tail


def _challenger_of(request: Request) -> int | None:
    """The version to be scored beside the answer, if the header names one."""
    value = request.headers.get(CHALLENGER_HEADER, "")
    return int(value) if re.fullmatch("[1-9][0-9]{0,9}", value) else None


def _call_of(request: Request) -> str:
    """What is called, by the path's end. Raises `NotFound`."""
    path = re.fullmatch(r"(?:/trunks/[^/]+)?/(predict|predict-batch|explain)", request.url.path)
    if request.method != "POST" or path is None:
        raise NotFound(
            f"nothing is at {request.method} {request.url.path}: POST to …/predict, …/predict-batch or …/explain"
        )
    return path[1]


def _parse(kind: type[Query], values: Mapping[str, object]) -> Query:
    """Raises `CallerError` for a query that does not fit."""
    try:
        return kind.model_validate(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        raise CallerError(f"query {'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _unknown(label: str, key: TailKey, labels: Sequence[str]) -> LabelUnknown:
    shown = list(labels[:LABELS_SHOWN])
    more = f" and {len(labels) - len(shown)} more" if len(labels) > len(shown) else ""
    return LabelUnknown(
        f"model {key.model_name!r} version {key.version} has no label {label!r}: it has "
        f"{', '.join(map(repr, shown))}{more}",
        {"label": label, "labels": [*shown], "label_count": len(labels)},
    )


def _error_response(error: RekindleError) -> Response:
    match error:
        case NotFound():
            status = 404
        case Conflict():
            status = 409
        case CallerError():
            status = 422
        case RetryLater():
            status = 503
        case _:
            status = 500
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, RetryLater) else None
    return _json(status, _refusal(error), headers)


def _refusal(error: RekindleError) -> ReplicaError:
    if not isinstance(error, CallerError | RetryLater):
        log.error("predict.failed", extra={"code": error.code, "reason": error.message})
    return ReplicaError(code=error.code, message=error.message, details=error.details)


def _json(status: int, body: BaseModel, headers: dict[str, str] | None = None) -> Response:
    return Response(body.model_dump_json(), status, headers, "application/json")
