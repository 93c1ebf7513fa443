"""What every stage of an attempt has at hand, and how a stage is timed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray_cluster.train.capacity import CapacityWatch
from ray_cluster.train.dispatch import Parallelism
from ray_cluster.train.reporter import Reporter
from ray_cluster.train.work import Span, Watch, by_machine, covered_s
from services.contracts.base import utc_now
from services.contracts.ids import TrunkId
from services.contracts.jobs import JobRecord, Stage, StageTiming
from services.runtime.objects import ObjectStore


@dataclass(frozen=True, slots=True)
class AttemptContext:
    """One attempt of one job."""

    bucket_uri: str
    store: ObjectStore
    record: JobRecord
    attempt: int
    reporter: Reporter
    capacity: CapacityWatch
    """Where its tasks may run, and whether they wait for machines."""
    parallelism: Parallelism


class RunningStage(Watch):
    """A stage that has begun; `skip` says that its result was there already. Its work is told to it as spans."""

    def __init__(self, reporter: Reporter, timing: StageTiming) -> None:
        super().__init__()
        self.timing = timing
        self.skipped = False
        self._reporter = reporter

    def skip(self) -> None:
        """Nothing had to be done."""
        self.skipped = True

    def found_trunk(self, trunk_id: TrunkId) -> None:
        """Reports the trunk, which the gateway has served from then on: starting that takes as long as training."""
        self.timing = self.timing.model_copy(update={"trunk_id": trunk_id})
        self._reporter.stage(self.timing)


@contextmanager
def running(context: AttemptContext, stage: Stage) -> Iterator[RunningStage]:
    """Reports the stage's beginning, and its end unless it fails."""
    timing = StageTiming(stage=stage, attempt=context.attempt, started_at=utc_now(), finished_at=None)
    run = RunningStage(context.reporter, timing)
    context.reporter.stage(timing)
    yield run
    finished_at = utc_now()
    compute_s = covered_s(run.spans, Span(timing.started_at.timestamp(), finished_at.timestamp()))
    ended = {
        "finished_at": finished_at,
        "skipped": run.skipped,
        "compute_s": round(compute_s, 3),
        "machines": by_machine(run.spans),
    }
    context.reporter.stage(run.timing.model_copy(update=ended))
