"""Training jobs."""

from collections.abc import Generator, Iterator

from pydantic import TypeAdapter

from services.client.errors import JobFailed
from services.client.events import follow, wait_for_end
from services.client.transport import Transport
from services.contracts.jobs import JobEvent, JobState, TrainingJob, TrainingJobSpec
from services.contracts.pages import Page

_JOB = TypeAdapter(TrainingJob)
_PAGE = TypeAdapter(Page[TrainingJob])


class TrainingJobs:
    """Calls on `/v1/training-jobs`. All raise `ApiError` and `Unreachable`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(self, spec: TrainingJobSpec) -> TrainingJob:
        """Accepts a job. Returns when it is stored for good; it then runs whatever happens to this process."""
        return self._transport.call(_JOB, "POST", "/v1/training-jobs", body=spec)

    def get(self, job_id: str) -> TrainingJob:
        return self._transport.call(_JOB, "GET", f"/v1/training-jobs/{job_id}")

    def page(self, *, cursor: str | None = None, limit: int | None = None) -> Page[TrainingJob]:
        """One page, newest first."""
        return self._transport.call(_PAGE, "GET", "/v1/training-jobs", query={"cursor": cursor, "limit": limit})

    def list(self) -> Iterator[TrainingJob]:
        """All jobs, newest first, page by page."""
        page = self.page()
        yield from page.items
        while page.next_cursor:
            page = self.page(cursor=page.next_cursor)
            yield from page.items

    def cancel(self, job_id: str) -> TrainingJob:
        """Asks the job to stop. Cancelling one that has been cancelled changes nothing."""
        return self._transport.call(_JOB, "POST", f"/v1/training-jobs/{job_id}/cancel")

    def events(self, job_id: str, *, after: int = 0) -> Generator[JobEvent, None, None]:
        """The job's events with `seq` greater than `after`, as they happen, until the job has ended.

        Goes on where it was when the connection breaks: no event is missing and none comes twice.
        """
        path = f"/v1/training-jobs/{job_id}/events"
        return follow(self._transport, path, after, lambda: self.get(job_id).state.is_terminal)

    def logs(self, job_id: str, *, attempt: int | None = None) -> str:
        """What an attempt has printed, by default the newest."""
        return self._transport.text(f"/v1/training-jobs/{job_id}/logs", query={"attempt": attempt})

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> TrainingJob:
        """Returns the job when it has succeeded.

        Raises:
            JobFailed: it failed or was cancelled.
            TimeoutError: it has not ended after `timeout_s` seconds; it goes on.
        """
        wait_for_end(self.events(job_id), job_id, timeout_s)
        job = self.get(job_id)
        if job.state is not JobState.SUCCEEDED:
            raise JobFailed(job)
        return job
