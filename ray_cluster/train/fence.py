"""The fence: what was given up must not commit anything.

It has two numbers. The reconciler raises the attempt when it starts another; within an attempt, the supervisor raises
the term when it gives the fit to another trainer. Whoever works under lower numbers than the fence's is fenced.
"""

from services.contracts import names
from services.contracts.errors import Fenced, NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import Fence
from services.runtime.objects import ObjectStore

_RACES = 10


def read_fence(store: ObjectStore, job_id: JobId) -> Fence:
    """The fence as it stands; attempt 0 before the first."""
    try:
        return Fence.model_validate_json(store.get(names.job_fence(job_id)))
    except NotFound:
        return Fence(attempt=0)


def check_fence(store: ObjectStore, job_id: JobId, attempt: int, term: int | None = None) -> None:
    """Raises `Fenced` when a newer attempt of the job exists, or a newer term of the attempt.

    Call it right before every commit. `term` is null for the attempt's driver, which no term fences.
    """
    fence = read_fence(store, job_id)
    if fence.attempt > attempt:
        raise Fenced(f"attempt {attempt} of {job_id} was given up: attempt {fence.attempt} goes on")
    if term is not None and (fence.attempt, fence.term) > (attempt, term):
        raise Fenced(f"term {term} of attempt {attempt} of {job_id} was given up: term {fence.term} goes on")


def raise_term(store: ObjectStore, job_id: JobId, attempt: int) -> int:
    """Fences every term of the attempt so far; the new one. Raises `Fenced` when a newer attempt exists."""
    key = names.job_fence(job_id)
    for _ in range(_RACES):
        current = store.get_with_etag(key)
        fence = Fence.model_validate_json(current.data)
        if fence.attempt > attempt:
            raise Fenced(f"attempt {attempt} of {job_id} was given up: attempt {fence.attempt} goes on")
        raised = Fence(attempt=attempt, term=fence.term + 1)
        if store.put(key, raised.model_dump_json().encode(), if_match=current.etag) is not None:
            return raised.term
    raise Fenced(f"others keep taking over attempt {attempt} of {job_id}")
