"""What the training gateway's routes work with, and how they get at it."""

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

import anyio
from fastapi import Depends, Header, Request

from services.runtime.auth import Principal, Scope, require
from services.runtime.database import Database
from services.runtime.objects import ObjectStore
from services.runtime.settings import Settings
from services.training.pulse import Pulse
from services.training.ray_api import RayApi

UPLOAD_THREADS = 32
"""Uploads that are written at a time; more wait. Their threads are their own, so slow clients hold up nobody else."""


@dataclass(frozen=True, slots=True)
class Training:
    """The gateway's dependencies. One per process."""

    settings: Settings
    database: Database
    store: ObjectStore
    ray: RayApi
    wake: Pulse = field(default_factory=Pulse)
    """Sent when there is something to do for the reconciler."""
    changed: Pulse = field(default_factory=Pulse)
    """Sent when jobs have changed."""
    published: Pulse = field(default_factory=Pulse)
    """Sent when what is to be served has changed: the published versions, or the trunk of a job that will publish."""
    ending: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the server stops: streams end."""
    uploads: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(UPLOAD_THREADS))


async def training_of(request: Request) -> Training:
    """The gateway's dependencies, as its lifespan put them on the application."""
    value: object = request.app.state.training
    if not isinstance(value, Training):
        raise TypeError(f"app.state.training is {type(value).__name__}")
    return value


TrainingContext = Annotated[Training, Depends(training_of)]
Reader = Annotated[Principal, Depends(require(Scope.READ))]
Predictor = Annotated[Principal, Depends(require(Scope.PREDICT))]
Trainer = Annotated[Principal, Depends(require(Scope.TRAIN))]
IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        description="Any text of your own. Repeating the request with the same key returns what the first one made.",
        examples=["6d0bfe3e-9f4c-4c5e-8a51-3a1f2f1b0c11"],
    ),
]
