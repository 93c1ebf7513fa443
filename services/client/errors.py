"""Everything the client raises on purpose."""

from pydantic import JsonValue

from services.contracts.jobs import BatchPrediction, TrainingJob


class ClientError(Exception):
    """Base of the client's errors. Its text is a sentence for people."""


class ApiError(ClientError):
    """The server answered with a problem.

    Attributes:
        status: The HTTP status.
        code: Stable, for programs, e.g. `dataset_empty`.
        message: What was wrong and what to do.
        details: Depends on the code.
        request_id: Names the request in the server's logs.
        retry_after_s: Seconds after which the server wants to be asked again; 0 where it did not say.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        details: dict[str, JsonValue] | None = None,
        request_id: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.details: dict[str, JsonValue] = details or {}
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class Unreachable(ClientError):
    """The server did not answer for as long as the client was willing to try."""


class JobFailed(ClientError):
    """A job that was waited for ended otherwise than successfully. `job` says how."""

    def __init__(self, job: TrainingJob | BatchPrediction) -> None:
        why = job.failure.message if job.failure is not None else job.reason
        super().__init__(f"{job.id} {job.state}: {why}")
        self.job = job
