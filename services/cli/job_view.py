"""What a job's events say so far. Pure: events in, a picture out."""

from dataclasses import dataclass, field

from pydantic import ValidationError

from services.contracts.jobs import (
    CapacityWait,
    EpochMetrics,
    JobEvent,
    JobEventType,
    JobState,
    Progress,
    Stage,
    StageTiming,
)

STAGE_TITLES = {
    Stage.PREFLIGHT: "Reading every image",
    Stage.CHOOSE: "Choosing the backbone",
    Stage.FEATURES: "Computing features",
    Stage.FIT: "Training the head",
    Stage.FINE_TUNE: "Fine-tuning",
    Stage.EVALUATE: "Evaluating",
    Stage.PUBLISH: "Publishing",
    Stage.LIST: "Listing the files",
    Stage.PREDICT: "Labelling",
    Stage.MERGE: "Writing the results",
}


@dataclass(slots=True)
class JobView:
    """The picture after the events that were applied."""

    state: JobState = JobState.QUEUED
    attempt: int = 0
    message: str = ""
    progress: Progress | None = None
    metrics: EpochMetrics | None = None
    waiting: CapacityWait | None = None
    """Set while the attempt waits for a machine."""
    stages: dict[Stage, StageTiming] = field(default_factory=dict[Stage, StageTiming])
    """The newest timing of each stage that has begun."""
    last_seq: int = 0

    def apply(self, event: JobEvent) -> list[str]:
        """Takes an event in; returns lines that a person should see stay."""
        self.last_seq, self.state, self.message = event.seq, event.state, event.message
        if event.state is not JobState.WAITING_FOR_CAPACITY:
            self.waiting = None
        lines: list[str] = []
        if event.attempt > max(self.attempt, 1):
            lines.append(f"attempt {event.attempt}: {event.message}")
        self.attempt = max(self.attempt, event.attempt)
        try:
            lines += self._take_in(event)
        except ValidationError:  # a newer server's event; its message is all we understand
            lines.append(event.message)
        return lines

    def _take_in(self, event: JobEvent) -> list[str]:
        match event.type:
            case JobEventType.STAGE:
                return self._stage(StageTiming.model_validate(event.data))
            case JobEventType.PROGRESS:
                self.progress = Progress.model_validate(event.data)
            case JobEventType.EPOCH:
                metrics = EpochMetrics.model_validate(event.data)
                self.metrics = metrics
                stage = Stage.FINE_TUNE if Stage.FINE_TUNE in self.stages else Stage.FIT
                self.progress = Progress(stage=stage, done=metrics.epoch, total=metrics.epochs, unit="epochs")
            case JobEventType.RECOVERY:
                return [event.message]
            case JobEventType.WARNING:
                return [f"warning: {event.message}"]
            case JobEventType.CAPACITY:
                return self._capacity(CapacityWait.model_validate(event.data))
            case JobEventType.STATE:
                if event.state in (JobState.WAITING_FOR_CAPACITY, JobState.CANCELLING):
                    return [f"{event.state.replace('_', ' ')}: {event.message}"]
        return []

    def _capacity(self, wait: CapacityWait) -> list[str]:
        """The change of state before it said the same already, unless the job was waiting before."""
        before, self.waiting = self.waiting, None if wait.over else wait
        if wait.over:
            return [wait.sentence]
        return [wait.sentence] if before not in (None, wait) else []

    def _stage(self, timing: StageTiming) -> list[str]:
        self.stages[timing.stage] = timing
        if timing.finished_at is None:
            self.progress = None
            return []
        took = "done before" if timing.skipped else f"{duration_s(timing):.1f} s"
        lines = [f"{STAGE_TITLES[timing.stage]}: {took}"]
        return lines if timing.backbone_choice is None else [*lines, timing.backbone_choice.reason]

    @property
    def title(self) -> str:
        """What is going on, in a few words."""
        if self.waiting is not None:
            return "Waiting for a machine"
        if self.progress is not None:
            return STAGE_TITLES[self.progress.stage]
        running = [stage for stage, timing in self.stages.items() if timing.finished_at is None]
        return STAGE_TITLES[running[-1]] if running else self.state.replace("_", " ").capitalize()


def duration_s(timing: StageTiming) -> float:
    """Seconds that a finished stage took; 0 for one that has not finished."""
    return 0.0 if timing.finished_at is None else (timing.finished_at - timing.started_at).total_seconds()
