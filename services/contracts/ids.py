"""Identifiers: opaque to users, and sortable by the time they were made."""

import secrets
import time
from typing import NewType

JobId = NewType("JobId", str)
"""Of a training job or a batch prediction: what the reconciler drives to an end."""
DatasetId = NewType("DatasetId", str)
TrunkId = NewType("TrunkId", str)


def _new_id(prefix: str) -> str:
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(6)}"


def new_job_id() -> JobId:
    """A fresh training-job id, `job_` and 24 hexadecimal digits of which the first 12 are milliseconds."""
    return JobId(_new_id("job"))


def new_batch_prediction_id() -> JobId:
    """A fresh batch prediction's id, `pred_` and 24 hexadecimal digits of which the first 12 are milliseconds."""
    return JobId(_new_id("pred"))


def new_dataset_id() -> DatasetId:
    """A fresh dataset id, `ds_` and 24 hexadecimal digits of which the first 12 are milliseconds."""
    return DatasetId(_new_id("ds"))


def submission_id(job_id: JobId, attempt: int) -> str:
    """The Ray submission id of an attempt. Deterministic, so submitting twice is refused by Ray, not done twice."""
    return f"{job_id}-a{attempt}"


def new_spare_id() -> str:
    """A fresh Ray submission id for a spare driver, `spare_` and 24 hexadecimal digits."""
    return _new_id("spare")


def is_spare(submission_id: str) -> bool:
    """Whether a Ray submission id is a spare driver's."""
    return submission_id.startswith("spare_")


def export_submission_id(job_id: JobId, export_format: str, build: int) -> str:
    """The Ray submission id of a build of an export; `job_id` is the job that published the version."""
    return f"{job_id}-export-{export_format}-{build}"
