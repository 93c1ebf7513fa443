"""Aliases: names for versions of a model, which promote, roll back, and try a new version beside the old one."""

from datetime import datetime
from typing import Annotated, Self

from pydantic import Field, TypeAdapter, model_validator

from services.contracts.base import Contract, StoredContract, stored

MAX_VERSION = 2**31 - 1

VersionNumber = Annotated[int, Field(ge=1, le=MAX_VERSION)]


class AliasSplit(Contract):
    """A second version that answers a share of the requests."""

    version: VersionNumber = Field(examples=[2])
    weight: float = Field(
        gt=0, lt=1, description="Share of the requests; the alias's own version answers the others.", examples=[0.1]
    )


class AliasShadow(Contract):
    """A challenger: it is scored on the images that the alias's version answers, and never answers itself."""

    version: VersionNumber = Field(examples=[2])


class AliasTarget(Contract):
    """What an alias refers to: a version, which may have a second one beside it, in one of two roles."""

    version: VersionNumber = Field(examples=[1])
    split: AliasSplit | None = None
    shadow: AliasShadow | None = None

    @model_validator(mode="after")
    def _one_other_version(self) -> Self:
        if self.split is not None and self.shadow is not None:
            raise ValueError("give `split` or `shadow`, not both")
        if self.version in self.others:
            raise ValueError(f"version {self.version} is named twice: name another beside it")
        return self

    @property
    def others(self) -> tuple[int, ...]:
        """The versions besides `version`."""
        return tuple(role.version for role in (self.split, self.shadow) if role is not None)

    @property
    def target(self) -> "tuple[int, AliasSplit | None, AliasShadow | None]":
        """What is compared."""
        return self.version, self.split, self.shadow


class AliasChange(AliasTarget):
    """Where an alias shall point. What it pointed at before is replaced as a whole."""

    expected_version: int | None = Field(
        default=None,
        ge=0,
        le=MAX_VERSION,
        description="The version it refers to now, 0 for none; anything else is a conflict. Null does not check. A "
        "split or a shadow that it has now does not matter: see `expected`.",
        examples=[1],
    )
    expected: AliasTarget | None = Field(
        default=None,
        description="All that it refers to now, split and shadow included; anything else is a conflict. Instead of "
        "`expected_version`.",
    )

    @model_validator(mode="after")
    def _one_expectation(self) -> Self:
        if self.expected is not None and self.expected_version is not None:
            raise ValueError("give `expected` or `expected_version`, not both")
        return self


class ModelAlias(Contract):
    """An alias as the API shows it."""

    alias: str
    version: int
    split: AliasSplit | None = Field(description="Null: the version answers all requests.")
    shadow: AliasShadow | None = Field(description="Null: no other version is scored beside it.")
    updated_at: datetime


_SPLIT: TypeAdapter[AliasSplit | None] = TypeAdapter(AliasSplit | None)
_SHADOW: TypeAdapter[AliasShadow | None] = TypeAdapter(AliasShadow | None)


class AliasRecord(StoredContract):
    """An alias in the bucket."""

    alias: str
    version: int | None = Field(description="Null: the alias was deleted.")
    split: Annotated[AliasSplit | None, stored(_SPLIT)] = None
    shadow: Annotated[AliasShadow | None, stored(_SHADOW)] = None
    updated_at: datetime

    @property
    def versions(self) -> tuple[int, ...]:
        """Every version that it refers to, in any role."""
        others = (role.version for role in (self.split, self.shadow) if role is not None)
        return () if self.version is None else (self.version, *others)


def shown_target(alias: AliasTarget | ModelAlias) -> str:
    """What it refers to, for people."""
    text = f"version {alias.version}"
    if alias.split is not None:
        text += f" and, for {alias.split.weight:.4g} of the requests, version {alias.split.version}"
    if alias.shadow is not None:
        text += f" with version {alias.shadow.version} in its shadow"
    return text
