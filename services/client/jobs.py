"""What training jobs and batch predictions have in common: they are accepted, followed, cancelled and waited for."""

from collections.abc import Generator, Iterator
from typing import ClassVar, Generic, TypeVar

from pydantic import TypeAdapter

from services.client.errors import JobFailed
from services.client.events import follow, wait_for_end
from services.client.transport import Transport
from services.contracts.jobs import BatchPrediction, JobEvent, JobState, TrainingJob
from services.contracts.pages import Page

Job = TypeVar("Job", TrainingJob, BatchPrediction)


class Jobs(Generic[Job]):
    """Calls on one kind of job. All raise `ApiError` and `Unreachable`."""

    root: ClassVar[str]
    """The path of all of them."""

    def __init__(self, transport: Transport, job: TypeAdapter[Job], page: TypeAdapter[Page[Job]]) -> None:
        self._transport = transport
        self._job = job
        self._page = page

    def get(self, job_id: str) -> Job:
        return self._transport.call(self._job, "GET", f"{self.root}/{job_id}")

    def page(self, *, cursor: str | None = None, limit: int | None = None) -> Page[Job]:
        """One page, newest first."""
        return self._transport.call(self._page, "GET", self.root, query={"cursor": cursor, "limit": limit})

    def list(self) -> Iterator[Job]:
        """All of them, newest first, page by page."""
        page = self.page()
        yield from page.items
        while page.next_cursor:
            page = self.page(cursor=page.next_cursor)
            yield from page.items

    def cancel(self, job_id: str) -> Job:
        """Asks it to stop. Cancelling one that has been cancelled changes nothing."""
        return self._transport.call(self._job, "POST", f"{self.root}/{job_id}/cancel")

    def events(self, job_id: str, *, after: int = 0) -> Generator[JobEvent, None, None]:
        """Its events with `seq` greater than `after`, as they happen, until it has ended.

        Goes on where it was when the connection breaks: no event is missing and none comes twice.
        """
        path = f"{self.root}/{job_id}/events"
        return follow(self._transport, path, after, lambda: self.get(job_id).state.is_terminal)

    def logs(self, job_id: str, *, attempt: int | None = None) -> str:
        """What an attempt has printed, by default the newest."""
        return self._transport.text(f"{self.root}/{job_id}/logs", query={"attempt": attempt})

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> Job:
        """Returns it when it has succeeded.

        Raises:
            JobFailed: it failed or was cancelled.
            TimeoutError: it has not ended after `timeout_s` seconds; it goes on.
        """
        wait_for_end(self.events(job_id), job_id, timeout_s)
        found = self.get(job_id)
        if found.state is not JobState.SUCCEEDED:
            raise JobFailed(found)
        return found
