"""Predicting: one question to a replica for each image, a bounded number at a time, all within one deadline."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import structlog

from services.contracts.errors import CallerError, NotFound, Overloaded
from services.contracts.predictions import ImageFailed, ImagePredicted, ImageResult, PredictResponse
from services.inference.predict.inputs import ImageInput
from services.inference.predict.queries import ServedVersion, VersionChoice
from services.inference.predict.resolution import Resolver
from services.inference.replicas import Replicas

IMAGES_AT_ONCE = 16
"""Images of one request that are read and asked for at the same time."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Answers prediction requests. One per process."""

    resolver: Resolver
    replicas: Replicas
    deadline_s: float
    """Seconds that a request may take, waiting for a replica included."""

    async def predict(self, choice: VersionChoice, images: Sequence[ImageInput], top_k: int) -> PredictResponse:
        """Every image's predictions, in order. An image that cannot be used is an `ImageFailed` among the others.

        Raises:
            NotFound: no such model, version or alias.
            CallerError: the only image cannot be used; as `ImageRejected` where its bytes are at fault.
            ModelLoading, Overloaded, ObjectStoreUnavailable, DatabaseUnavailable: try again later.
        """
        deadline = asyncio.get_running_loop().time() + self.deadline_s
        served = await self.resolver.resolve(choice)
        slots = asyncio.Semaphore(IMAGES_AT_ONCE)

        async def result_of(image: ImageInput) -> ImageResult:
            try:
                async with slots:
                    return await self._ask(served, image, top_k, deadline)
            except CallerError as error:
                if len(images) == 1 or isinstance(error, NotFound):
                    raise
                return ImageFailed(image=image.name, code=error.code, message=error.message)

        tasks = [asyncio.create_task(result_of(image)) for image in images]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        failed = sum(isinstance(each, ImageFailed) for each in results)
        log.debug(
            "predict.answered", model=served.model_name, version=served.version, images=len(results), failed=failed
        )
        return PredictResponse(model_name=served.model_name, version=served.version, results=results)

    async def _ask(self, served: ServedVersion, image: ImageInput, top_k: int, deadline: float) -> ImagePredicted:
        try:
            async with asyncio.timeout_at(deadline):
                data = await image.read()
        except TimeoutError as error:
            raise Overloaded(f"{image.name!r} could not be read within {self.deadline_s:g} s: try again") from error
        predictions = await self.replicas.predict(served, data, top_k, deadline)
        return ImagePredicted(image=image.name, predictions=predictions)
