"""The spare driver: a process in the cluster that waits for the attempt that it is to run.

A Ray job takes seconds to begin: its supervisor, its driver, the processes of its first tasks. So while no job runs one
is started for whatever comes next. One object in the bucket says which it is and what it is given; all that change it
do so over the etag that they read, so it is given one attempt or none.
"""

from pydantic import Field

from services.contracts.base import StoredContract
from services.contracts.ids import JobId


class GivenAttempt(StoredContract):
    """What a spare driver is to run."""

    job_id: JobId
    attempt: int


class SpareDriver(StoredContract):
    """The newest spare driver. One that is another must end."""

    submission_id: str = Field(description="Of its Ray job.")
    ready: bool = Field(default=False, description="It is there, with the processes of its first tasks.")
    given: GivenAttempt | None = Field(default=None, description="Null: nothing so far.")


class AttemptDriver(StoredContract):
    """Where an attempt runs that was given to a spare driver."""

    submission_id: str
