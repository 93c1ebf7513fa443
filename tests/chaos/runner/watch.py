"""Follows the jobs of a run: each job's events as they come, and the stage that it is in."""

import logging
import threading
from collections.abc import Callable
from datetime import datetime

from services.client import Rekindle
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, JobEvent, JobEventType, JobState, Stage, StageTiming
from tests.chaos.runner.schedule import TRAINING

_log = logging.getLogger(__name__)


class WatchedJob:
    """One job. Its thread reads the event stream until the job has ended, through whatever happens to the gateway."""

    def __init__(self, job_id: JobId, work: int, connect: Callable[[], Rekindle]) -> None:
        self.job_id = job_id
        self.work = work
        self._connect = connect
        self._events: list[JobEvent] = []
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._follow, name=f"watch-{job_id}", daemon=True)
        self._thread.start()

    @property
    def events(self) -> list[JobEvent]:
        """So far, in order."""
        return list(self._events)

    @property
    def state(self) -> JobState:
        return self._events[-1].state if self._events else JobState.QUEUED

    @property
    def active(self) -> bool:
        """Whether it has not ended, as far as is known. Raises what ended the watch otherwise."""
        if self._error is not None:
            raise self._error
        return not self.state.is_terminal

    @property
    def stage(self) -> Stage | None:
        """The stage that runs; None before the first and between two."""
        for event in reversed(self.events):
            if event.type is JobEventType.STAGE:
                timing = StageTiming.model_validate(event.data)
                return None if timing.finished_at is not None else timing.stage
        return None

    @property
    def trains(self) -> bool:
        """Whether it trains and has done a step of that stage."""
        kinds = [each.type for each in self.events if each.type in (JobEventType.STAGE, JobEventType.EPOCH)]
        return self.stage in TRAINING and kinds[-1] is JobEventType.EPOCH

    def epoch_after(self, at: datetime) -> int | None:
        """The newest epoch that was done after `at`."""
        for event in reversed(self.events):
            if event.type is JobEventType.EPOCH and event.at > at:
                return EpochMetrics.model_validate(event.data).epoch
        return None

    def join(self, timeout_s: float) -> bool:
        """Waits for the job's end; whether it came. Raises what ended the watch otherwise."""
        self._thread.join(timeout_s)
        if self._error is not None:
            raise self._error
        return not self._thread.is_alive()

    def _follow(self) -> None:
        try:
            with self._connect() as client:
                for event in client.training_jobs.events(self.job_id):
                    self._events.append(event)
        except BaseException as error:
            self._error = error
            _log.exception("the watch of %s ended", self.job_id)
            raise
