"""What a gateway says of itself."""

from typing import Literal

from pydantic import Field

from services.contracts.base import Contract


class Health(Contract):
    """The process runs."""

    status: Literal["ok"] = "ok"
    release: str = Field(description="Of the gateway, e.g. `0.1.0`.")


class Readiness(Contract):
    """The process can answer requests."""

    status: Literal["ready"] = "ready"
    checks: list[str]
    unavailable: dict[str, str] = Field(
        default_factory=dict, description="What cannot be reached though most requests do without it, and why."
    )
