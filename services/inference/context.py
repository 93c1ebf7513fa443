"""What the inference gateway's routes work with, and how they get at it."""

from dataclasses import dataclass, field
from typing import Annotated

import anyio
from fastapi import Depends, Request

from services.inference.explain.operations import Explainer
from services.inference.predict.operations import Predictor
from services.runtime.settings import Settings

FETCH_THREADS = 16
"""Images that are read from buckets at a time, over all requests; more wait."""


@dataclass(frozen=True, slots=True)
class Inference:
    """The gateway's dependencies. One per process."""

    settings: Settings
    predictor: Predictor
    explainer: Explainer
    fetches: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(FETCH_THREADS))


async def inference_of(request: Request) -> Inference:
    """The gateway's dependencies, as its lifespan put them on the application."""
    value: object = request.app.state.inference
    if not isinstance(value, Inference):
        raise TypeError(f"app.state.inference is {type(value).__name__}")
    return value


InferenceContext = Annotated[Inference, Depends(inference_of)]
