"""Batch predictions: labels for every image of a source."""

from collections.abc import Generator, Iterator
from pathlib import Path

from pydantic import TypeAdapter

from services.client.errors import JobFailed
from services.client.events import follow, wait_for_end
from services.client.transport import Transport
from services.contracts.batch_predictions import BatchPredictionSpec
from services.contracts.jobs import BatchPrediction, JobEvent, JobState
from services.contracts.pages import Page

ROOT = "/v1/batch-predictions"

_PREDICTION = TypeAdapter(BatchPrediction)
_PAGE = TypeAdapter(Page[BatchPrediction])


class BatchPredictions:
    """Calls on `/v1/batch-predictions`. All raise `ApiError` and `Unreachable`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, spec: BatchPredictionSpec) -> BatchPrediction:
        """Accepts a batch prediction. Returns when it is stored for good; it then runs whatever happens to this
        process."""
        # Fields that were not given are not sent, and the server would not know what kind of source it is.
        source = spec.source.model_copy(update={"type": spec.source.type})
        body = spec.model_copy(update={"source": source})
        return self._transport.call(_PREDICTION, "POST", ROOT, body=body)

    def get(self, job_id: str) -> BatchPrediction:
        return self._transport.call(_PREDICTION, "GET", f"{ROOT}/{job_id}")

    def page(self, *, cursor: str | None = None, limit: int | None = None) -> Page[BatchPrediction]:
        """One page, newest first."""
        return self._transport.call(_PAGE, "GET", ROOT, query={"cursor": cursor, "limit": limit})

    def list(self) -> Iterator[BatchPrediction]:
        """All batch predictions, newest first, page by page."""
        page = self.page()
        yield from page.items
        while page.next_cursor:
            page = self.page(cursor=page.next_cursor)
            yield from page.items

    def cancel(self, job_id: str) -> BatchPrediction:
        """Asks it to stop. Cancelling one that has been cancelled changes nothing."""
        return self._transport.call(_PREDICTION, "POST", f"{ROOT}/{job_id}/cancel")

    def events(self, job_id: str, *, after: int = 0) -> Generator[JobEvent, None, None]:
        """Its events with `seq` greater than `after`, as they happen, until it has ended.

        Goes on where it was when the connection breaks: no event is missing and none comes twice.
        """
        return follow(self._transport, f"{ROOT}/{job_id}/events", after, lambda: self.get(job_id).state.is_terminal)

    def logs(self, job_id: str, *, attempt: int | None = None) -> str:
        """What an attempt has printed, by default the newest."""
        return self._transport.text(f"{ROOT}/{job_id}/logs", query={"attempt": attempt})

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> BatchPrediction:
        """Returns the batch prediction when it has succeeded.

        Raises:
            JobFailed: it failed or was cancelled.
            TimeoutError: it has not ended after `timeout_s` seconds; it goes on.
        """
        wait_for_end(self.events(job_id), job_id, timeout_s)
        found = self.get(job_id)
        if found.state is not JobState.SUCCEEDED:
            raise JobFailed(found)
        return found

    def download(self, job_id: str, file: Path | str) -> None:
        """Writes the labels into a file, whole or not at all: as a table where its name ends in `.csv`, else as JSON
        lines.

        Raises:
            OSError: the file cannot be written.
        """
        self._download(f"{ROOT}/{job_id}/results", Path(file))

    def download_quarantine(self, job_id: str, file: Path | str) -> None:
        """As `download`, for the list of files that were set aside."""
        self._download(f"{ROOT}/{job_id}/quarantine", Path(file))

    def _download(self, path: str, file: Path) -> None:
        query = {"format": "csv" if file.suffix.lower() == ".csv" else "jsonl"}
        self._transport.download(path, file, query=query)
