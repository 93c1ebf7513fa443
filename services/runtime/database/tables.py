"""The tables. JSON columns hold contracts dumped with `model_dump(mode="json")`; the database adds nothing to them."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    Dialect,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    TypeDecorator,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

JsonObject = dict[str, Any]
"""A JSON object as the database gives it back; validate it into a contract before use."""

Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
"""JSON where None is SQL NULL and not the JSON word null."""


class UtcDateTime(TypeDecorator[datetime]):
    """Timestamps with the UTC time zone on every database. SQLite has none and gives naive ones back."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Raises `ValueError` for a naive timestamp: it would be stored as whatever zone the machine is in."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Constraints have names, so that migrations can name them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy reads it from the class)
        datetime: UtcDateTime(),
        JsonObject: Json,
        list[JsonObject]: Json,
        list[str]: Json,
    }


class DatasetRow(Base):
    """A registered dataset (`contracts.datasets.Dataset`)."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "created_at", "id"),)

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    source: Mapped[JsonObject]
    state: Mapped[str] = mapped_column(String(32))
    layout: Mapped[JsonObject | None]
    created_at: Mapped[datetime]


class JobRow(Base):
    """A job of any kind: what was asked for, where it stands, and what the reconciler needs to drive it on."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "state", "created_at"),
        Index(None, "created_at", "id"),
    )

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(32))
    dataset_id: Mapped[str | None] = mapped_column(String(64), ForeignKey("datasets.id"))
    model_name: Mapped[str] = mapped_column(String(64))
    spec: Mapped[JsonObject | None]
    """`TrainingJobSpec` or `BatchPredictionSpec`; null for `import_base`."""
    record: Mapped[JsonObject]
    """`JobRecord`, as it is in the bucket."""
    state: Mapped[str] = mapped_column(String(32))
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    """The newest attempt's number; 0 before the first."""
    submission_id: Mapped[str | None] = mapped_column(String(128))
    reason: Mapped[str] = mapped_column(Text, default="")
    progress: Mapped[JsonObject | None]
    waiting: Mapped[JsonObject | None]
    """`CapacityWait` while the newest attempt waits for a machine."""
    metrics: Mapped[JsonObject | None]
    stages: Mapped[list[JsonObject]] = mapped_column(default=list)
    warnings: Mapped[list[str]] = mapped_column(default=list)
    result: Mapped[JsonObject | None]
    """`PublishedModel` or `BatchResult`."""
    failure: Mapped[JsonObject | None]
    unknown_failures: Mapped[int] = mapped_column(Integer, default=0)
    """Attempts that count against `max_attempts`."""
    infrastructure_failures: Mapped[int] = mapped_column(Integer, default=0)
    """Attempts lost to machines, stores or networks; decides the backoff only."""
    deaths: Mapped[int] = mapped_column(Integer, default=0)
    """Attempts in a row that ended without a word and got no further than those before them."""
    progress_mark: Mapped[int] = mapped_column(BigInteger, default=-1)
    """How far any attempt got, as one growing number; -1 before the first progress."""
    submitted_at: Mapped[datetime | None]
    """When the cluster took the current attempt; null until it is known to have."""
    retry_at: Mapped[datetime | None]
    progress_seq: Mapped[int] = mapped_column(Integer, default=-1)
    """The last `ProgressRecord` of the current attempt that was taken over; -1 before the first."""
    cancel_requested: Mapped[bool] = mapped_column(default=False)
    event_seq: Mapped[int] = mapped_column(Integer, default=0)
    """The newest event's `seq`; 0 before the first."""
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]


class JobEventRow(Base):
    """One line of a job's history (`contracts.jobs.JobEvent`). Never changed once written."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(String(64), ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    seq: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    type: Mapped[str] = mapped_column(String(32))
    at: Mapped[datetime]
    attempt: Mapped[int] = mapped_column(Integer)
    state: Mapped[str] = mapped_column(String(32))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[JsonObject]


class ModelVersionRow(Base):
    """A published version: a copy of its manifest in the bucket, for listing."""

    __tablename__ = "model_versions"
    __table_args__ = (
        # Each asks which trunks the published versions need, or which version a job gave.
        Index(None, "trunk_id"),
        Index(None, "job_id"),
    )

    model_name: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    created_at: Mapped[datetime]
    job_id: Mapped[str] = mapped_column(String(64))
    """No foreign key: versions outlive their jobs, and a restored database may know no job."""
    trunk_id: Mapped[str] = mapped_column(String(64))
    manifest: Mapped[JsonObject]
    deleted_at: Mapped[datetime | None]


class ModelAliasRow(Base):
    """A name for a version, e.g. `production` (`contracts.aliases.ModelAlias`)."""

    __tablename__ = "model_aliases"

    model_name: Mapped[str] = mapped_column(String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version: Mapped[int] = mapped_column(Integer)
    split_version: Mapped[int | None] = mapped_column(Integer)
    """Answers `split_weight` of the requests; both are null, or neither."""
    split_weight: Mapped[float | None] = mapped_column(Double)
    shadow_version: Mapped[int | None] = mapped_column(Integer)
    """Scored beside `version`; never with a split."""
    updated_at: Mapped[datetime]


class RegistryGenerationRow(Base):
    """One row, whose number grows with every transaction that changes a version or an alias. Triggers write it."""

    __tablename__ = "registry_generation"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    generation: Mapped[int] = mapped_column(BigInteger)


class IdempotencyKeyRow(Base):
    """What a request with an `Idempotency-Key` made, so that repeating it makes nothing twice."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (Index(None, "created_at"),)

    principal: Mapped[str] = mapped_column(String(64), primary_key=True)
    route: Mapped[str] = mapped_column(String(128), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    request_sha256: Mapped[str] = mapped_column(String(64))
    resource_id: Mapped[str] = mapped_column(String(128))
    created_at: Mapped[datetime]


class ApiKeyRow(Base):
    """An API key. The secret itself is shown once, when the key is made, and kept nowhere."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]]
    created_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]


class LeaseRow(Base):
    """Who may do what only one process may do at a time. Times are the database's own clock."""

    __tablename__ = "leases"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(String(128))
    epoch: Mapped[int] = mapped_column(BigInteger)
    """Grows with every change of holder; a fencing token."""
    expires_at: Mapped[float] = mapped_column(Double)
    """Unix time in seconds by the database's clock."""
