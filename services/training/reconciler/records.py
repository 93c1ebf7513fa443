"""What the reconciler and an attempt tell each other through the bucket. All functions block."""

from itertools import islice

from services.contracts import names
from services.contracts.errors import NotFound
from services.contracts.ids import JobId
from services.contracts.jobs import AttemptOutcome, Fence, JobOutcome, ProgressRecord, PublishedModel
from services.contracts.models import ModelManifest
from services.runtime.objects import ObjectStore

MAX_RECORDS = 500
"""Progress records taken over at a time; the rest follows at the next look."""
_RACES = 10


def read_outcome(store: ObjectStore, job_id: JobId, attempt: int) -> AttemptOutcome | None:
    """The attempt's own account of its end, or None where it left none so far."""
    try:
        return AttemptOutcome.model_validate_json(store.get(names.attempt_outcome(job_id, attempt)))
    except NotFound:
        return None


def read_progress(store: ObjectStore, job_id: JobId, attempt: int, after: int) -> list[ProgressRecord]:
    """The attempt's records with a greater `seq` than `after`, in order."""
    start_after = names.attempt_progress(job_id, attempt, after) if after >= 0 else None
    listed = store.list(names.attempt_progress_prefix(job_id, attempt), start_after=start_after)
    return [ProgressRecord.model_validate_json(store.get(info.key)) for info in islice(listed, MAX_RECORDS)]


def raise_fence(store: ObjectStore, job_id: JobId, attempt: int) -> bool:
    """Makes every attempt before this one stop committing. False: a newer attempt has its fence up already."""
    key = names.job_fence(job_id)
    data = Fence(attempt=attempt).model_dump_json().encode()
    for _ in range(_RACES):
        try:
            current = store.get_with_etag(key)
        except NotFound:
            if store.put(key, data, if_absent=True) is not None:
                return True
            continue
        standing = Fence.model_validate_json(current.data).attempt
        if standing >= attempt:
            return standing == attempt
        if store.put(key, data, if_match=current.etag) is not None:
            return True
    return False


def read_fence(store: ObjectStore, job_id: JobId) -> int:
    """The newest attempt that had its fence raised; 0 for none."""
    try:
        return Fence.model_validate_json(store.get(names.job_fence(job_id))).attempt
    except NotFound:
        return 0


def write_job_outcome(store: ObjectStore, outcome: JobOutcome) -> None:
    """How the job ended; the first account stays."""
    store.put(names.job_outcome(outcome.job_id), outcome.model_dump_json().encode(), if_absent=True)


def read_manifest(store: ObjectStore, published: PublishedModel) -> ModelManifest:
    """The manifest of a version that an attempt says it published. Raises `NotFound` where it did not."""
    return ModelManifest.model_validate_json(store.get(names.model_manifest(published.model_name, published.version)))
