"""Where a job's work may run."""

from typing import Literal, Self

from pydantic import Field, model_validator

from services.contracts.base import Contract

Market = Literal["any", "spot", "on_demand"]
"""How machines are bought; nodes say it by Ray's label `ray.io/market-type`, `spot` or `on-demand`."""


class Resources(Contract):
    """Where a job's work may run, and how much of it at a time. The result does not depend on it."""

    min_workers: int = Field(default=1, ge=1, le=64, description="Training begins with as many.")
    max_workers: int = Field(
        default=1, ge=1, le=64, description="Training grows to as many while the cluster has room, and shrinks again."
    )
    market: Market = Field(
        default="any",
        description="Only nodes with this label `ray.io/market-type`; `any` takes every node, with a label or without.",
    )
    on_demand_after_s: float | None = Field(
        default=None,
        ge=0,
        le=7 * 24 * 3600,
        description="With `spot`: after waiting so long for a spot node, on-demand nodes count too, for the rest of "
        "the attempt. Null: never.",
    )
    accelerator: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$",
        max_length=63,
        examples=["L4"],
        description="Only nodes with this label `ray.io/accelerator-type`; null needs none.",
    )

    @model_validator(mode="after")
    def _falls_back_from_spot_only(self) -> Self:
        if self.on_demand_after_s is not None and self.market != "spot":
            raise ValueError(
                f"on_demand_after_s {self.on_demand_after_s:g} means nothing with market {self.market!r}: set market "
                "'spot', or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_workers > self.max_workers:
            raise ValueError(
                f"min_workers {self.min_workers} is more than max_workers {self.max_workers}: raise max_workers"
            )
        return self
