"""Training jobs."""

from pydantic import TypeAdapter

from services.client.jobs import Jobs
from services.client.transport import Transport
from services.contracts.jobs import TrainingJob, TrainingJobSpec
from services.contracts.pages import Page
from services.contracts.receipts import Receipt

_JOB = TypeAdapter(TrainingJob)
_PAGE = TypeAdapter(Page[TrainingJob])
_RECEIPT = TypeAdapter(Receipt)


class TrainingJobs(Jobs[TrainingJob]):
    """Calls on `/v1/training-jobs`. All raise `ApiError` and `Unreachable`."""

    root = "/v1/training-jobs"

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, _JOB, _PAGE)

    def create(self, spec: TrainingJobSpec) -> TrainingJob:
        """Accepts a job. Returns when it is stored for good; it then runs whatever happens to this process."""
        return self._transport.call(_JOB, "POST", self.root, body=spec)

    def receipt(self, job_id: str) -> Receipt:
        """What it has cost so far, computed from what its attempts told and the server's price list."""
        return self._transport.call(_RECEIPT, "GET", f"{self.root}/{job_id}/receipt")
