"""A job drawn on a terminal, and written where there is none."""

import io
import re

import httpx2
import pytest
from rich.console import Console

from services.cli.live import watch_job
from services.client import Rekindle
from services.contracts.base import utc_now
from services.contracts.ids import DatasetId, JobId
from services.contracts.jobs import (
    EpochMetrics,
    JobEvent,
    JobEventType,
    JobState,
    Progress,
    Stage,
    StageTiming,
    TrainingJob,
    TrainingJobSpec,
)

JOB = TrainingJob(
    id=JobId("job_1"),
    spec=TrainingJobSpec(dataset_id=DatasetId("ds_1")),
    model_name="m",
    state=JobState.SUCCEEDED,
    attempt=1,
    submission_id=None,
    progress=None,
    metrics=None,
    stages=[],
    backbone_choice=None,
    waiting=None,
    result=None,
    failure=None,
    warnings=[],
    reason="",
    created_at=utc_now(),
    updated_at=utc_now(),
    finished_at=None,
)


def story() -> list[JobEvent]:
    now = utc_now()
    timing = StageTiming(stage=Stage.FEATURES, attempt=1, started_at=now, finished_at=None)
    told = [
        (JobEventType.STAGE, timing),
        (JobEventType.PROGRESS, Progress(stage=Stage.FEATURES, done=150, total=300, unit="images")),
        (JobEventType.STAGE, timing.model_copy(update={"finished_at": now})),
        (JobEventType.STAGE, StageTiming(stage=Stage.FIT, attempt=1, started_at=now, finished_at=None)),
        *(
            (
                JobEventType.EPOCH,
                EpochMetrics(
                    epoch=epoch,
                    epochs=40,
                    train_loss=1 / epoch,
                    train_accuracy=0.5,
                    validation_loss=1,
                    validation_accuracy=0.75,
                ),
            )
            for epoch in range(1, 41)
        ),
    ]
    events = [
        JobEvent(
            seq=seq,
            type=kind,
            at=now,
            attempt=1,
            state=JobState.TRAINING,
            message="",
            data=data.model_dump(mode="json"),
        )
        for seq, (kind, data) in enumerate(told, start=1)
    ]
    last = {"seq": len(events) + 1, "type": JobEventType.STATE, "state": JobState.SUCCEEDED, "data": {}}
    return [*events, events[-1].model_copy(update=last)]


def answer(request: httpx2.Request) -> httpx2.Response:
    if request.url.path.endswith("/events"):
        lines = (f"id: {event.seq}\ndata: {event.model_dump_json()}\n\n" for event in story())
        return httpx2.Response(200, text="".join(lines))
    return httpx2.Response(200, text=JOB.model_dump_json())


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_job_is_shown(is_terminal: bool) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=140, color_system=None)
    with Rekindle("http://server", http=httpx2.MockTransport(answer)) as client:
        assert watch_job(client.training_jobs, JOB.id, console) == JOB
    shown = text.getvalue()
    assert "Computing features: 0.0 s" in shown
    if is_terminal:
        assert re.search(r"Training the head .*40/40.* loss 0\.025, validation accuracy 75\.0%", shown)
        assert "\x1b[2K" in shown  # drawn over itself
    else:
        epochs = re.findall(r"epoch (\d+) of 40", shown)
        assert epochs == ["1", *(str(epoch) for epoch in range(4, 41, 4))]
        assert "\x1b" not in shown
