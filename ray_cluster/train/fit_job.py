"""What the driver and the fit worker tell each other. As JSON, so nothing of ours is pickled into Ray Train."""

from services.contracts.base import StoredContract
from services.contracts.ids import JobId
from services.contracts.jobs import Failure, TrainingJobSpec
from services.contracts.models import TrunkManifest


class FitJob(StoredContract):
    """All that a fit worker is started from; the rest is in the bucket."""

    bucket_uri: str
    job_id: JobId
    attempt: int
    spec: TrainingJobSpec
    manifest_key: str
    trunk: TrunkManifest


class FitReturn(StoredContract):
    """How the fit ended. With neither, the finished checkpoint is in the bucket."""

    fenced: bool
    failure: Failure | None
