"""Whose fault an error is. One pure function decides; the driver and the fit worker both ask it."""

import errno
from collections.abc import Mapping

from ray.exceptions import OutOfMemoryError, RayError, RayTaskError, WorkerCrashedError

from services.contracts.errors import CallerError, Fenced, RekindleError, RetryLater
from services.contracts.jobs import PROCESS_LOST, Failure, FailureClass

_INFRASTRUCTURE_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH}
)
_MAX_DEPTH = 10


class AttemptFailed(Exception):
    """A failure that was classified elsewhere, in a process that has ended since."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure)
        self.failure = failure

    def __str__(self) -> str:
        return self.failure.message


def classify(error: BaseException) -> Failure | None:
    """The failure that an error means for the attempt; None for `Fenced`, which is nobody's failure.

    Looks through the wrappers in which Ray carries errors from one process to another. An unknown error's message
    names its type; its traceback belongs in the log.
    """
    cause = unwrap(error)
    match cause:
        case Fenced():
            return None
        case AttemptFailed():
            return cause.failure
        case CallerError():
            return _failure(FailureClass.USER, cause)
        case RetryLater():
            return _failure(FailureClass.INFRASTRUCTURE, cause)
        case RekindleError():
            return _failure(FailureClass.UNKNOWN, cause)
        case WorkerCrashedError() | OutOfMemoryError():
            message = f"a process of the job died ({type(cause).__name__}): {_first_line(cause)}"
            return Failure(failure_class=FailureClass.INFRASTRUCTURE, code=PROCESS_LOST, message=message)
        case RayError():
            message = f"a machine or process of the cluster was lost ({type(cause).__name__}): {_first_line(cause)}"
            return Failure(failure_class=FailureClass.INFRASTRUCTURE, code="cluster_lost", message=message)
        case ConnectionError() | TimeoutError():
            message = f"a connection failed ({type(cause).__name__}): {_first_line(cause)}"
            return Failure(failure_class=FailureClass.INFRASTRUCTURE, code="connection_lost", message=message)
        case OSError() if cause.errno in _INFRASTRUCTURE_ERRNOS:
            message = f"the machine failed ({type(cause).__name__}): {_first_line(cause)}"
            return Failure(failure_class=FailureClass.INFRASTRUCTURE, code="machine_failed", message=message)
        case _:
            message = f"unexpected {type(cause).__name__}: {_first_line(cause)}; the attempt's log has the traceback"
            return Failure(failure_class=FailureClass.UNKNOWN, code="internal_error", message=message)


def unwrap(error: BaseException) -> BaseException:
    """The error that happened, out of Ray's and Ray Train's wrappers."""
    for _ in range(_MAX_DEPTH):
        inner = _inner(error)
        if inner is None or inner is error:
            break
        error = inner
    return error


def _inner(error: BaseException) -> BaseException | None:
    if isinstance(error, RayTaskError):
        return error.cause if isinstance(error.cause, BaseException) else None
    # Ray Train's errors are recognised by their attributes: importing ray.train costs the driver seconds.
    failures = getattr(error, "worker_failures", None)
    if isinstance(failures, Mapping) and failures:
        return failures[min(failures)]
    for name in ("controller_failure", "_base_exc"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return inner
    return None


def _failure(failure_class: FailureClass, error: RekindleError) -> Failure:
    return Failure(failure_class=failure_class, code=error.code, message=error.message, details=error.details)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:500]
