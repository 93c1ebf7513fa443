"""What a gateway brings to the application that it runs in, so that one process can hold one gateway or several."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

from fastapi import APIRouter, FastAPI

from services.runtime.app import Lifespan, ReadinessCheck


def _nothing() -> None:
    return


@dataclass(frozen=True, slots=True)
class GatewayParts:
    """One gateway, ready for `create_app`."""

    routers: Sequence[APIRouter]
    lifespan: Lifespan
    """Puts what its routes need on `app.state`, runs the background work, and ends it."""
    tags: Sequence[tuple[str, str]] = ()
    readiness: Mapping[str, ReadinessCheck] = field(default_factory=dict[str, ReadinessCheck])
    dependencies: Mapping[str, ReadinessCheck] = field(default_factory=dict[str, ReadinessCheck])
    """What `/readyz` reports without failing: most requests do without it."""
    end_streams: Callable[[], None] = _nothing
    """Ends responses that would go on for minutes. Call it when the server stops, before it waits for its requests."""


def join(parts: Sequence[GatewayParts]) -> GatewayParts:
    """Several gateways as one."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncGenerator[None, None]:
        async with AsyncExitStack() as stack:
            for part in parts:
                await stack.enter_async_context(part.lifespan(app))
            yield

    def end_streams() -> None:
        for part in parts:
            part.end_streams()

    return GatewayParts(
        routers=[router for part in parts for router in part.routers],
        lifespan=lifespan,
        tags=list(dict.fromkeys(tag for part in parts for tag in part.tags)),
        readiness={name: check for part in parts for name, check in part.readiness.items()},
        dependencies={name: check for part in parts for name, check in part.dependencies.items()},
        end_streams=end_streams,
    )
