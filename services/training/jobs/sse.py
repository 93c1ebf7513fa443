"""A job's events as Server-Sent Events: what the event routes of every kind of job share."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Header, Query
from fastapi.sse import ServerSentEvent

from services.contracts.jobs import JobKind
from services.training.context import Training
from services.training.jobs.event_stream import follow

MAX_SEQ = 2**31 - 1

After = Annotated[int, Query(ge=0, le=MAX_SEQ, description="Only events with a greater `seq`.")]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="Sent by clients that connect again; wins over `after`.")
]


def last_seen(after: int, last_event_id: str | None) -> int:
    """The `seq` to go on after; what is no number counts for nothing."""
    if last_event_id is not None and last_event_id.isascii() and last_event_id.isdigit():
        return min(int(last_event_id[:10]), MAX_SEQ)
    return after


async def sent_events(
    training: Training, job_id: str, after: int, kind: JobKind = JobKind.TRAIN
) -> AsyncGenerator[ServerSentEvent, None]:
    """The job's events as they are sent. See `follow`."""
    async for event in follow(training, job_id, after, kind=kind):
        yield ServerSentEvent(id=str(event.seq), event=event.type.value, raw_data=event.model_dump_json())
