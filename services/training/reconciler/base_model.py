"""The job that publishes the pretrained classifier as the model `base`."""

import hashlib
from datetime import datetime

from services.contracts.ids import JobId
from services.contracts.jobs import BaseModelSpec, JobKind, JobRecord
from services.contracts.models import BASE_MODEL


def base_job(spec: BaseModelSpec, created_at: datetime) -> JobRecord:
    """The job for one base model. Its id is made from the spec, so every gateway means the same job."""
    digest = hashlib.sha256(f"import_base\0{spec.model_dump_json()}".encode()).hexdigest()
    return JobRecord(
        job_id=JobId(f"job_{digest[:24]}"),
        kind=JobKind.IMPORT_BASE,
        model_name=BASE_MODEL,
        created_at=created_at,
        spec=None,
        source_uri=None,
        base=spec,
    )
