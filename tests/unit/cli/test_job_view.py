"""What a person sees of a job's events."""

from datetime import UTC, datetime, timedelta

from pydantic import JsonValue

from services.cli.job_view import JobView
from services.contracts.jobs import (
    BackboneChoice,
    CapacityWait,
    EpochMetrics,
    JobEvent,
    JobEventType,
    JobState,
    Progress,
    Stage,
    StageTiming,
)
from tests.servers.choices import CHOICE

START = datetime(2026, 1, 1, tzinfo=UTC)


class Story:
    """Events in a row, applied to a view; keeps the lines."""

    def __init__(self) -> None:
        self.view = JobView()
        self.lines: list[str] = []

    def tell(
        self,
        kind: JobEventType,
        data: dict[str, JsonValue],
        *,
        state: JobState = JobState.PREPARING,
        attempt: int = 1,
        message: str = "",
    ) -> None:
        event = JobEvent(
            seq=self.view.last_seq + 1, type=kind, at=START, attempt=attempt, state=state, message=message, data=data
        )
        self.lines += self.view.apply(event)

    def stage(
        self,
        stage: Stage,
        seconds: float | None,
        *,
        skipped: bool = False,
        attempt: int = 1,
        choice: BackboneChoice | None = None,
    ) -> None:
        finished = None if seconds is None else START + timedelta(seconds=seconds)
        timing = StageTiming(
            stage=stage,
            attempt=attempt,
            started_at=START,
            finished_at=finished,
            skipped=skipped,
            backbone_choice=choice,
        )
        self.tell(JobEventType.STAGE, timing.model_dump(mode="json"), attempt=attempt)


def test_a_stage_is_the_title_while_it_runs_and_a_line_when_it_is_done() -> None:
    story = Story()
    story.stage(Stage.PREFLIGHT, None)
    assert story.view.title == "Reading every image"
    assert story.lines == []
    story.stage(Stage.PREFLIGHT, 2.5)
    assert story.lines == ["Reading every image: 2.5 s"]


def test_a_skipped_stage_says_so() -> None:
    story = Story()
    story.stage(Stage.FEATURES, 0.1, skipped=True)
    assert story.lines == ["Computing features: done before"]


def test_why_a_backbone_was_chosen_is_said() -> None:
    story = Story()
    story.stage(Stage.CHOOSE, 3, choice=CHOICE)
    assert story.lines == ["Choosing the backbone: 3.0 s", CHOICE.reason]


def test_progress_belongs_to_its_stage() -> None:
    story = Story()
    story.stage(Stage.FEATURES, None)
    progress = Progress(stage=Stage.FEATURES, done=5, total=10, unit="images")
    story.tell(JobEventType.PROGRESS, progress.model_dump(mode="json"))
    assert story.view.progress == progress
    story.stage(Stage.FIT, None)
    assert story.view.progress is None
    assert story.view.title == "Training the head"


def test_the_newest_epoch_is_shown() -> None:
    story = Story()
    for epoch in (1, 2):
        metrics = EpochMetrics(
            epoch=epoch, epochs=9, train_loss=1, train_accuracy=0.5, validation_loss=None, validation_accuracy=0.4
        )
        story.tell(JobEventType.EPOCH, metrics.model_dump(mode="json"))
    assert story.view.metrics is not None
    assert story.view.metrics.epoch == 2
    assert story.view.progress == Progress(stage=Stage.FIT, done=2, total=9, unit="epochs")


def test_epochs_of_fine_tuning_are_not_those_of_the_head() -> None:
    story = Story()
    story.stage(Stage.FIT, 2)
    story.stage(Stage.FINE_TUNE, None)
    metrics = EpochMetrics(
        epoch=1, epochs=3, train_loss=1, train_accuracy=0.5, validation_loss=None, validation_accuracy=None
    )
    story.tell(JobEventType.EPOCH, metrics.model_dump(mode="json"))
    assert story.view.progress == Progress(stage=Stage.FINE_TUNE, done=1, total=3, unit="epochs")
    assert story.view.title == "Fine-tuning"


def test_another_attempt_is_a_line() -> None:
    story = Story()
    story.tell(JobEventType.STATE, {}, attempt=1, message="submitted")
    story.tell(JobEventType.STATE, {}, attempt=2, message="the worker was lost")
    assert story.lines == ["attempt 2: the worker was lost"]


def test_waiting_and_warnings_stay_on_the_screen() -> None:
    story = Story()
    story.tell(JobEventType.STATE, {}, state=JobState.WAITING_FOR_CAPACITY, message="no machine to be had")
    story.tell(JobEventType.WARNING, {}, message="2 files cannot be used")
    assert story.lines == ["waiting for capacity: no machine to be had", "warning: 2 files cannot be used"]


def test_a_wait_for_a_machine_is_the_title_and_each_reason_a_line() -> None:
    story = Story()
    story.stage(Stage.FEATURES, None)
    wait = CapacityWait(asked="0.9 CPU on a spot node", since=START, message="no spot node", on_demand_at=None)
    waiting = JobState.WAITING_FOR_CAPACITY
    story.tell(JobEventType.STATE, {}, state=waiting, message=wait.sentence)
    story.tell(JobEventType.CAPACITY, wait.model_dump(mode="json"), state=waiting, message=wait.sentence)
    assert story.view.title == "Waiting for a machine"
    changed = wait.model_copy(update={"message": "no spot node; starting: spot"})
    story.tell(JobEventType.CAPACITY, changed.model_dump(mode="json"), state=waiting)
    over = changed.model_copy(update={"over": True})
    story.tell(JobEventType.CAPACITY, over.model_dump(mode="json"))
    assert story.view.title == "Computing features"
    assert story.lines == [f"waiting for capacity: {wait.sentence}", changed.sentence, over.sentence]


def test_an_event_of_a_newer_server_is_shown_by_its_message() -> None:
    story = Story()
    story.tell(JobEventType.STAGE, {"stage": "quantise"}, message="quantising")
    assert story.lines == ["quantising"]
