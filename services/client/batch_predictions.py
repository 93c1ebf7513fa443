"""Batch predictions: labels for every image of a source."""

from pathlib import Path

from pydantic import TypeAdapter

from services.client.jobs import Jobs
from services.client.transport import Transport
from services.contracts.batch_predictions import BatchPredictionSpec
from services.contracts.jobs import BatchPrediction
from services.contracts.pages import Page

_PREDICTION = TypeAdapter(BatchPrediction)
_PAGE = TypeAdapter(Page[BatchPrediction])


class BatchPredictions(Jobs[BatchPrediction]):
    """Calls on `/v1/batch-predictions`. All raise `ApiError` and `Unreachable`."""

    root = "/v1/batch-predictions"

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport, _PREDICTION, _PAGE)

    def create(self, spec: BatchPredictionSpec) -> BatchPrediction:
        """Accepts a batch prediction. Returns when it is stored for good; it then runs whatever happens to this
        process."""
        # Fields that were not given are not sent, and the server would not know what kind of source it is.
        source = spec.source.model_copy(update={"type": spec.source.type})
        body = spec.model_copy(update={"source": source})
        return self._transport.call(_PREDICTION, "POST", self.root, body=body)

    def download(self, job_id: str, file: Path | str) -> None:
        """Writes the labels into a file, whole or not at all: as a table where its name ends in `.csv`, else as JSON
        lines.

        Raises:
            OSError: the file cannot be written.
        """
        self._download(f"{self.root}/{job_id}/results", Path(file))

    def download_quarantine(self, job_id: str, file: Path | str) -> None:
        """As `download`, for the list of files that were set aside."""
        self._download(f"{self.root}/{job_id}/quarantine", Path(file))

    def _download(self, path: str, file: Path) -> None:
        query = {"format": "csv" if file.suffix.lower() == ".csv" else "jsonl"}
        self._transport.download(path, file, query=query)
