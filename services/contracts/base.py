"""The base of every contract model, and the field types that several of them share."""

from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, WrapValidator

NAME_PATTERN = r"^[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?$"

ResourceName = Annotated[
    str,
    StringConstraints(pattern=NAME_PATTERN),
    Field(description="1 to 64 characters: lower-case letters, digits, '.', '_' and '-', no separator at the ends."),
]
"""A name that users give and that appears in URLs and bucket keys."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in lower-case hexadecimal."""


class Contract(BaseModel):
    """An immutable record; an unknown field is an error, so a misspelt option is never silently ignored."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class StoredContract(BaseModel):
    """An immutable record read back from the bucket; fields that a newer release added are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ObjectRef(StoredContract):
    """One object of a manifest; readers check size and sha256."""

    key: str
    sha256: Sha256
    size_bytes: int


def stored(contract: TypeAdapter[Any]) -> WrapValidator:
    """Makes a field of a stored record read a strict `Contract` leniently, at every depth.

    An older gateway beside a newer one, or after a rollback, meets specs with fields it does not know. The API, which
    reads the contract itself, stays strict.
    """
    return WrapValidator(lambda value, _: contract.validate_python(value, extra="ignore"))


def utc_now() -> datetime:
    """Now, with the UTC time zone attached."""
    return datetime.now(UTC)
