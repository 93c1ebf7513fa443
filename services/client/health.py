"""What a server says of itself, and how soon."""

import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from pydantic import TypeAdapter

from services.client.transport import Transport
from services.contracts.health import Health, Readiness

_HEALTH = TypeAdapter(Health)
_READINESS = TypeAdapter(Readiness)


@dataclass(frozen=True, slots=True)
class ServerHealth:
    """A server that answers."""

    release: str
    answered_s: float
    """How long that took."""
    clock_ahead_s: float | None
    """How far its clock is ahead of this machine's, to a second or so; None where it does not say."""


def health(transport: Transport) -> ServerHealth:
    """Raises as `Transport.call` does."""
    began_s = time.monotonic()
    response = transport.respond("GET", "/healthz")
    answered_s = time.monotonic() - began_s
    release = transport.parsed(_HEALTH, response).release
    date = response.headers.get("date")
    ahead_s = None if date is None else parsedate_to_datetime(date).timestamp() - (time.time() - answered_s / 2)
    return ServerHealth(release, answered_s, ahead_s)


def readiness(transport: Transport) -> Readiness:
    """What it can reach. Raises as `Transport.call` does: `ApiError` with `details["failed"]` where it is not ready."""
    return transport.call(_READINESS, "GET", "/readyz")
