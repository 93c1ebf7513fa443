"""What an attempt tells the world while it runs: progress records in the bucket, in order of their number.

The driver and the fit worker each have a reporter for the same attempt, one after the other. Every record is created
only if absent, and a taken number moves on to the next: two writers never overwrite each other and leave no gap.
"""

import logging
import threading
import time
from collections.abc import Callable

from pydantic import JsonValue

from ray_cluster.train.fence import check_fence
from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import Fenced, RetryLater
from services.contracts.ids import JobId
from services.contracts.jobs import (
    CapacityWait,
    EpochMetrics,
    JobEventType,
    Progress,
    ProgressRecord,
    Recovery,
    Stage,
    StageTiming,
)
from services.runtime.objects import ObjectStore

PROGRESS_INTERVAL_S = 0.5
EPOCH_INTERVAL_S = 0.2
FENCE_INTERVAL_S = 1.0
"""How long a trainer that was given up may go on reporting at most."""

_log = logging.getLogger(__name__)


class Reporter:
    """Writes an attempt's progress records. Safe for several threads.

    A store that is unavailable loses records and never stops the attempt: what must not be lost (outcome,
    checkpoints, model) is written elsewhere. With a `term`, which trainers have, nothing is written once a newer one
    exists: a trainer that was thought lost and is not must not tell the job's story beside its successor.
    """

    def __init__(
        self,
        store: ObjectStore,
        job_id: JobId,
        attempt: int,
        clock: Callable[[], float] = time.monotonic,
        *,
        term: int | None = None,
        say: Callable[[str], None] = _log.info,
    ) -> None:
        """`say` gets every record's message as well, for the job's log."""
        self._store = store
        self._job_id = job_id
        self._attempt = attempt
        self._clock = clock
        self._term = term
        self._say = say
        self._fenced = False
        self._fence_seen_at: float | None = None
        self._next_seq: int | None = None
        self._last_at: dict[JobEventType, float] = {}
        self._lock = threading.Lock()

    def stage(self, timing: StageTiming) -> None:
        """A stage began (`finished_at` null), found its trunk, or ended, or was skipped."""
        began = "started" if timing.trunk_id is None else f"on trunk {timing.trunk_id[:16]}"
        what = "skipped, its result is there" if timing.skipped else "done" if timing.finished_at else began
        self._write(JobEventType.STAGE, timing.stage, f"{timing.stage}: {what}", timing.model_dump(mode="json"))

    def progress(self, stage: Stage, done: int, total: int | None, unit: str) -> None:
        """How far the stage is. At most one record in `PROGRESS_INTERVAL_S`, but the last one always."""
        if not self._due(JobEventType.PROGRESS, PROGRESS_INTERVAL_S, always=done == total):
            return
        data = Progress(stage=stage, done=done, total=total, unit=unit).model_dump(mode="json")
        of = "" if total is None else f" of {total}"
        self._write(JobEventType.PROGRESS, stage, f"{stage}: {done}{of} {unit}", data)

    def epoch(self, metrics: EpochMetrics, *, last: bool, stage: Stage = Stage.FIT) -> None:
        """An epoch ended. At most one record in `EPOCH_INTERVAL_S`, but the last epoch always."""
        if not self._due(JobEventType.EPOCH, EPOCH_INTERVAL_S, always=last):
            return
        message = f"epoch {metrics.epoch}: loss {metrics.train_loss:.4f}, accuracy {metrics.train_accuracy:.3f}"
        if metrics.validation_loss is not None and metrics.validation_accuracy is not None:
            message += f", validation {metrics.validation_loss:.4f}, {metrics.validation_accuracy:.3f}"
        self._write(JobEventType.EPOCH, stage, message, metrics.model_dump(mode="json"))

    def recovery(self, recovery: Recovery, stage: Stage = Stage.FIT) -> None:
        """Training went on in another process."""
        message = (
            f"training goes on after epoch {recovery.epoch}, the newest checkpoint's"
            if recovery.epoch
            else "training begins again: the process before was lost before its first checkpoint"
        )
        self._write(JobEventType.RECOVERY, stage, message, recovery.model_dump(mode="json"))

    def warning(self, stage: Stage, code: str, message: str) -> None:
        """Something that the user should know and that does not stop the job."""
        self._write(JobEventType.WARNING, stage, message, {"code": code, "message": message})

    def capacity(self, stage: Stage, wait: CapacityWait) -> None:
        """The stage waits for a machine, or no longer does."""
        self._write(JobEventType.CAPACITY, stage, wait.sentence, wait.model_dump(mode="json"))

    def _due(self, kind: JobEventType, interval_s: float, *, always: bool) -> bool:
        now = self._clock()
        with self._lock:
            last = self._last_at.get(kind)
            if not always and last is not None and now - last < interval_s:
                return False
            self._last_at[kind] = now
            return True

    def _write(self, kind: JobEventType, stage: Stage, message: str, data: dict[str, JsonValue]) -> None:
        with self._lock:
            try:
                if self._is_fenced():
                    return
                self._say(message)
                self._append(kind, stage, message, data)
            except RetryLater as error:
                self._next_seq = None  # the record may have been written all the same
                _log.warning("a progress record was lost: %s", error)

    def _is_fenced(self) -> bool:
        now = self._clock()
        if self._term is None or self._fenced:
            return self._fenced
        if self._fence_seen_at is None or now - self._fence_seen_at >= FENCE_INTERVAL_S:
            try:
                check_fence(self._store, self._job_id, self._attempt, self._term)
            except Fenced as error:
                _log.info("reporting no more: %s", error)
                self._fenced = True
            except RetryLater:
                return False  # then the record cannot be written either
            self._fence_seen_at = now
        return self._fenced

    def _append(self, kind: JobEventType, stage: Stage, message: str, data: dict[str, JsonValue]) -> None:
        seq = self._find_next_seq() if self._next_seq is None else self._next_seq
        while True:
            record = ProgressRecord(
                seq=seq, at=utc_now(), attempt=self._attempt, type=kind, stage=stage, message=message, data=data
            )
            key = names.attempt_progress(self._job_id, self._attempt, seq)
            seq += 1
            if self._store.put(key, record.model_dump_json().encode(), if_absent=True) is not None:
                self._next_seq = seq
                return

    def _find_next_seq(self) -> int:
        prefix = names.attempt_progress_prefix(self._job_id, self._attempt)
        last_key = max((info.key for info in self._store.list(prefix)), default=None)
        return 0 if last_key is None else int(last_key.removeprefix(prefix).removesuffix(".json")) + 1
