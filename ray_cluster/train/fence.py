"""The fence: an attempt that was given up must not commit anything."""

from services.contracts import names
from services.contracts.errors import Fenced, NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import Fence
from services.runtime.objects import ObjectStore


def check_fence(store: ObjectStore, job_id: JobId, attempt: int) -> None:
    """Raises `Fenced` when a newer attempt of the job exists. Call it right before every commit."""
    try:
        fence = Fence.model_validate_json(store.get(names.job_fence(job_id)))
    except NotFound:
        return
    if fence.attempt > attempt:
        raise Fenced(f"attempt {attempt} of {job_id} was given up: attempt {fence.attempt} goes on")
