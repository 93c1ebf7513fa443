"""A job's history as it happens."""

import time
from collections.abc import AsyncGenerator

from services.contracts.jobs import JobEvent, JobKind, JobState
from services.training.context import Training
from services.training.jobs import queries

POLL_S = 1.0
"""How often another process's reconciler is looked at; this process's own wakes the stream at once."""
MAX_LIFE_S = 15 * 60
"""After this long a stream ends and the client comes back: old connections must not keep an old server alive."""
BATCH = 200


async def follow(
    training: Training, job_id: str, after: int, max_life_s: float = MAX_LIFE_S, *, kind: JobKind = JobKind.TRAIN
) -> AsyncGenerator[JobEvent, None]:
    """The job's events with a greater `seq` than `after`, up to the one that ends the job.

    Ends earlier when the server stops and after `max_life_s`; go on then with the last `seq`. Holds no connection of
    the database while it waits.
    """
    end_at_s = time.monotonic() + max_life_s
    while not training.ending.is_set() and time.monotonic() < end_at_s:
        mark = training.changed.mark()
        async with training.database.session() as session:
            events = await queries.list_events(session, job_id, after=after, limit=BATCH)
            row = None if events else await queries.get_row(session, job_id, kind)
        for event in events:
            yield event
            after = event.seq
        if row is None:
            continue
        if JobState(row.state).is_terminal and after >= row.event_seq:
            return
        if after > row.event_seq:
            return  # a client with an id that this job never had
        await training.changed.wait(mark, POLL_S)
