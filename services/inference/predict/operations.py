"""Predicting: one question to a replica for each image, a bounded number at a time, all within one deadline.

An image that there is no room for waits for another of its request, so that a request of many is not lost for one.
Where no other is under way, the request has no place, and is refused.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from dataclasses import dataclass

import structlog

from services.contracts.errors import CallerError, NotFound, Overloaded
from services.contracts.predictions import (
    ImageFailed,
    ImagePredicted,
    ImageResult,
    Prediction,
    PredictResponse,
    StreamedFailed,
    StreamedPredicted,
    StreamEnded,
    StreamStarted,
)
from services.inference.predict.choosing import Chosen, choose
from services.inference.predict.inputs import ImageInput
from services.inference.predict.measures import count_answer
from services.inference.predict.queries import ServedVersion, VersionChoice
from services.inference.predict.resolution import Resolver
from services.inference.predict.shadows import Shadows
from services.inference.predict.under_way import UnderWay
from services.inference.replicas import Replicas

IMAGES_AT_ONCE = 16
"""Images of one request that are read and asked for at the same time."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Answers prediction requests. One per process."""

    resolver: Resolver
    replicas: Replicas
    shadows: Shadows
    deadline_s: float
    """Seconds that a request may take, waiting for a replica included."""

    def place_for(self, choice: VersionChoice, request_id: str) -> AbstractContextManager[None]:
        """Around a request that is going to `predict`: keeps a place for its first image, where it is in memory what
        the choice means. Costs next to nothing.

        Raises `Overloaded` when entered where as many images wait as may.
        """
        target = self.resolver.remembered(choice)
        if target is None:
            return nullcontext()
        return self.replicas.place_for(choose(target, choice, request_id).served)

    async def predict(
        self, choice: VersionChoice, images: Sequence[ImageInput], top_k: int, request_id: str
    ) -> PredictResponse:
        """Every image's predictions, in order. An image that cannot be used is an `ImageFailed` among the others.

        One version answers all of them; of an alias that is split, the one that `request_id` chooses.

        Raises:
            NotFound: no such model, version or alias.
            CallerError: the only image cannot be used; as `ImageRejected` where its bytes are at fault.
            ModelLoading, Overloaded, ObjectStoreUnavailable, DatabaseUnavailable: try again later.
        """
        deadline = self._deadline()
        chosen = choose(await self.resolver.resolve(choice), choice, request_id)
        served = chosen.served
        results: dict[int, ImageResult] = {}
        async with aclosing(self._answers(chosen, images, top_k, deadline)) as answers:
            async for index, answer in answers:
                if isinstance(answer, CallerError) and len(images) == 1:
                    raise answer
                results[index] = _result(images[index], answer)
        in_order = [results[index] for index in range(len(images))]
        _log_answered(served, in_order)
        return PredictResponse(model_name=served.model_name, version=served.version, results=in_order)

    async def stream(
        self, choice: VersionChoice, images: Sequence[ImageInput], top_k: int, request_id: str
    ) -> AsyncGenerator[StreamStarted | StreamedPredicted | StreamedFailed | StreamEnded, None]:
        """The lines of a streamed answer: each image as soon as it is ready, whatever its place in the request.

        The first line waits for the first image, so that a request that cannot be answered at all raises before any.
        Closing the generator stops the work.

        Raises:
            NotFound: no such model, version or alias.
            ModelLoading, Overloaded, ObjectStoreUnavailable, DatabaseUnavailable: try again later; images whose lines
                have come are answered.
        """
        deadline = self._deadline()
        chosen = choose(await self.resolver.resolve(choice), choice, request_id)
        served = chosen.served
        results: list[ImageResult] = []
        async with aclosing(self._answers(chosen, images, top_k, deadline)) as answers:
            async for index, answer in answers:
                if not results:
                    yield StreamStarted(model_name=served.model_name, version=served.version, image_count=len(images))
                results.append(_result(images[index], answer))
                yield _line(index, results[-1])
        _log_answered(served, results)
        yield StreamEnded(failed_count=sum(isinstance(each, ImageFailed) for each in results))

    def _deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.deadline_s

    async def _answers(
        self, chosen: Chosen, images: Sequence[ImageInput], top_k: int, deadline: float
    ) -> AsyncGenerator[tuple[int, list[Prediction] | CallerError], None]:
        """Each image's place and its predictions, or why it cannot be used, as they get ready.

        What concerns the whole request is raised; then, and when the generator is closed, the rest is cancelled.
        """
        slots, under_way = asyncio.Semaphore(IMAGES_AT_ONCE), UnderWay()

        async def answer_of(index: int, image: ImageInput) -> tuple[int, list[Prediction] | CallerError]:
            try:
                async with slots:
                    data = await image.read_until(deadline, self.deadline_s)
                    return index, await self._ask_among(under_way, chosen, data, top_k, deadline)
            except NotFound:
                raise
            except CallerError as error:
                return index, error

        if len(images) == 1:  # as most requests have; a task would cost more than all else here
            yield await answer_of(0, images[0])
            return
        tasks = [asyncio.create_task(answer_of(index, image)) for index, image in enumerate(images)]
        try:
            for ready in asyncio.as_completed(tasks):
                yield await ready
        finally:
            for task in tasks:
                task.cancel()
            # They read from the request's files, which are closed next.
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask_among(
        self, under_way: UnderWay, chosen: Chosen, data: bytes, top_k: int, deadline: float
    ) -> list[Prediction]:
        """Again where there is no room, as long as other images of the request are under way."""
        while True:
            try:
                with under_way.one():
                    return await self._ask(chosen, data, top_k, deadline)
            except Overloaded:
                if not await under_way.another_got_through(deadline):
                    raise

    async def _ask(self, chosen: Chosen, data: bytes, top_k: int, deadline: float) -> list[Prediction]:
        started_s = time.perf_counter()
        if chosen.shadow is None:
            predictions = await self.replicas.predict(chosen.served, data, top_k, deadline)
        else:
            predictions = await self.shadows.predict(chosen, chosen.shadow, data, top_k, deadline)
        count_answer(chosen, time.perf_counter() - started_s)
        return predictions


def _result(image: ImageInput, answer: list[Prediction] | CallerError) -> ImageResult:
    if isinstance(answer, CallerError):
        return ImageFailed(image=image.name, code=answer.code, message=answer.message)
    return ImagePredicted(image=image.name, predictions=answer)


def _line(index: int, result: ImageResult) -> StreamedPredicted | StreamedFailed:
    if isinstance(result, ImageFailed):
        return StreamedFailed(index=index, image=result.image, code=result.code, message=result.message)
    return StreamedPredicted(index=index, image=result.image, predictions=result.predictions)


def _log_answered(served: ServedVersion, results: Sequence[ImageResult]) -> None:
    failed = sum(isinstance(each, ImageFailed) for each in results)
    log.debug("predict.answered", model=served.model_name, version=served.version, images=len(results), failed=failed)
