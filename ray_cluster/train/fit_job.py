"""What the parts of a fit tell each other: driver, supervisor and trainer. As JSON, so nothing of ours is pickled."""

from datetime import datetime
from enum import StrEnum

from pydantic import Field

from ray_cluster.train.work import Span
from services.contracts.base import StoredContract
from services.contracts.ids import JobId
from services.contracts.jobs import Failure, Stage, TrainingJobSpec
from services.contracts.models import ObjectRef, TrunkManifest


class WarmStart(StoredContract):
    """The parent's weights, to begin with."""

    tail: ObjectRef
    labels: list[str]
    """The tail's classes in its order, as the dataset calls them."""
    temperature: float
    """That the tail's logits were divided by."""


class FitJob(StoredContract):
    """All that a fit, or fine-tuning after it, is started from; the rest is in the bucket.

    What it computes is the same for all attempts.
    """

    bucket_uri: str
    job_id: JobId
    attempt: int
    spec: TrainingJobSpec
    manifest_key: str
    source_uri: str
    """Where the dataset's files are."""
    trunk: TrunkManifest
    """Gives the pooled features that the head is fitted on."""
    trunk_engine: str
    """Computed the features of both trunks, as `Fingerprint.trunk_engine` names it."""
    stage: Stage = Stage.FIT
    cut_trunk: TrunkManifest | None = None
    """Ends where fine-tuning begins; null for a head alone."""
    on_demand_counts: bool = False
    """The attempt has waited long enough for spot nodes (`Resources.on_demand_after_s`)."""
    lost_at: datetime | None = None
    """When the trainer that had it before was found lost; null for the first, and after one that left in time."""
    warm_start: WarmStart | None = None
    """What the head begins with; null for zeros."""

    @property
    def work(self) -> str:
        """What it trains, equal for all attempts: the job and the stage."""
        return f"{self.job_id}:{self.stage}"


class FitEnd(StrEnum):
    DONE = "done"
    """The finished checkpoint is in the bucket."""
    HANDED_OVER = "handed_over"
    """Stopped on request, saved where possible: another trainer is to go on."""
    GIVEN_UP = "given_up"
    """A newer attempt, or another trainer, goes on; or the job has ended."""
    FAILED = "failed"


class FitReturn(StoredContract):
    """How a fit ended."""

    end: FitEnd
    failure: Failure | None = None
    """Of a fit that failed."""
    span: Span | None = None
    """When it was at work, in the trainer that ended it."""


class FitNews(StoredContract):
    """What a fit's supervisor hears of it."""

    said: list[str] = Field(default_factory=list[str])
    """Lines for the job's log, each told once."""
    returned: FitReturn | None = None
    """Its end."""
    relieved: bool = False
    """Another supervisor took the fit over, and hears all the rest."""
