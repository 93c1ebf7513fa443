"""A job's events as they happen, over Server-Sent Events, without gaps or repeats across lost connections."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass

import httpx2

from services.client.errors import ApiError
from services.client.transport import RETRIED_STATUSES, Transport
from services.contracts.jobs import JobEvent, JobEventType

SILENCE_S = 60.0
"""The server sends something at least every 15 s; after this long without, the connection is dead."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event of a stream."""

    id: str
    event: str
    data: str


def parse_events(lines: Iterable[str]) -> Iterator[ServerSentEvent]:
    """The events in a stream's lines (WHATWG HTML, section 9.2.6). Comments and unfinished events are dropped."""
    last_id, event, data = "", "message", list[str]()
    for line in lines:
        if line == "":
            if data:
                yield ServerSentEvent(last_id, event, "\n".join(data))
            event, data = "message", []
            continue
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "id":
                last_id = value
            case "event":
                event = value
            case "data":
                data.append(value)
            case _:
                pass  # a comment, or a field we have no use for


def follow(transport: Transport, path: str, after: int, is_over: Callable[[], bool]) -> Generator[JobEvent, None, None]:
    """The job's events with `seq` greater than `after`, until one says that the job has ended.

    Reconnects with `Last-Event-ID` when the connection breaks or the server ends the stream. `is_over` says whether
    the job has ended, for a stream that ends without an event.

    Raises:
        ApiError: the job does not exist, or the key does not permit it.
        Unreachable: no connection within the client's patience.
    """
    patience, failures, last_answer_s = transport.patience, 0, transport.patience.clock()
    while True:
        failures, before = failures + 1, after
        failure: httpx2.TransportError | ApiError | None = None
        try:
            for event in _one_connection(transport, path, after):
                after, failures, last_answer_s = event.seq, 0, patience.clock()
                yield event
                if event.type is JobEventType.STATE and event.state.is_terminal:
                    return
        except httpx2.TransportError as error:
            failure = error
        except ApiError as error:
            if error.status not in RETRIED_STATUSES:
                raise
            failure = error
        if failure is None:
            if after == before and is_over():
                return
            last_answer_s = patience.clock()  # it lives
        if not patience.wait(max(failures, 1), 0, last_answer_s + patience.total_s):
            raise transport.unreachable(failure) if isinstance(failure, httpx2.TransportError) else failure or _silent()


def wait_for_end(events: Iterable[JobEvent], job_id: str, timeout_s: float | None) -> None:
    """Returns when the job has ended. Raises `TimeoutError` when it has not after `timeout_s` seconds."""
    deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
    for event in events:
        if deadline_s is not None and time.monotonic() > deadline_s and not event.state.is_terminal:
            raise TimeoutError(f"{job_id} is {event.state} after {timeout_s} s")


def _silent() -> ApiError:
    return ApiError(503, "unavailable", "the server keeps ending the stream of events: try again")


def _one_connection(transport: Transport, path: str, after: int) -> Iterator[JobEvent]:
    headers = {"accept": "text/event-stream", **({"last-event-id": str(after)} if after else {})}
    with transport.stream(path, headers=headers, timeout_s=SILENCE_S) as response:
        for event in parse_events(response.iter_lines()):
            job_event = JobEvent.model_validate_json(event.data)
            if job_event.seq > after:
                yield job_event
