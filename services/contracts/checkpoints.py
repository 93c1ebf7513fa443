"""Checkpoints: whole or not at all."""

from datetime import datetime

from pydantic import Field, JsonValue

from services.contracts.base import StoredContract
from services.contracts.ids import JobId
from services.contracts.models import Fingerprint, ObjectRef


class CheckpointManifest(StoredContract):
    """Written last and only if absent; readers trust nothing that no manifest names."""

    job_id: JobId
    attempt: int
    term: int = 0
    step: int = Field(description="Optimizer steps done.")
    epoch: int = Field(description="Epochs done.")
    created_at: datetime
    objects: dict[str, ObjectRef] = Field(description="By role, e.g. `state`.")
    fingerprint: Fingerprint
    position: dict[str, JsonValue] = Field(description="Loop state that is not a tensor: early stopping, metrics.")
