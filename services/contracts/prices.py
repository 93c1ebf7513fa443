"""What machines cost."""

from datetime import date
from typing import Self

from pydantic import Field, model_validator

from services.contracts.base import Contract

LOCAL = "local"
"""The instance type of a machine of one's own, which costs nothing."""


class InstancePrice(Contract):
    """One type of machine, for an hour, in the list's currency."""

    instance_type: str = Field(min_length=1, examples=["g4dn.xlarge"])
    region: str = Field(min_length=1, examples=["us-east-1"])
    vcpus: int = Field(ge=1)
    gpu: str | None = None
    on_demand: float = Field(ge=0)
    spot: float | None = Field(default=None, ge=0, description="A typical price; null: not known.")


class PriceList(Contract):
    """Prices of a day. A file of the operator's own has this form."""

    as_of: date
    source: str = Field(description="Where the prices are from.")
    currency: str = "USD"
    instances: list[InstancePrice]

    @model_validator(mode="after")
    def _once_each(self) -> Self:
        types = [each.instance_type for each in self.instances]
        twice = sorted({each for each in types if types.count(each) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)}: a type has one price here; keep a file for each region")
        return self

    def find(self, instance_type: str) -> InstancePrice | None:
        """The type's price, or None where the list has none."""
        return next((each for each in self.instances if each.instance_type == instance_type), None)
