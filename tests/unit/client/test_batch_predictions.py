"""Waiting for a batch prediction, and getting its labels in the form that the file's name asks for."""

import json
from pathlib import Path

import httpx2
import pytest

from services.client import JobFailed, Rekindle
from services.contracts.base import utc_now
from services.contracts.batch_predictions import BatchPredictionSpec, DatasetFiles
from services.contracts.datasets import PrefixSource
from services.contracts.ids import DatasetId, JobId
from services.contracts.jobs import BatchPrediction, Failure, FailureClass, JobEvent, JobEventType, JobState

ID = JobId("pred_" + "0" * 24)


def prediction(state: JobState, failure: Failure | None = None) -> BatchPrediction:
    return BatchPrediction(
        id=ID,
        spec=BatchPredictionSpec(model_name="flowers", source=PrefixSource(uri="s3://pets/new/")),
        model_name="flowers",
        version=1,
        state=state,
        attempt=1,
        submission_id=None,
        progress=None,
        waiting=None,
        stages=[],
        results_uri="s3://mine/predictions/x/",
        result=None,
        failure=failure,
        warnings=[],
        reason="Cancelled on request.",
        created_at=utc_now(),
        updated_at=utc_now(),
        finished_at=None,
    )


def client(ended: BatchPrediction) -> Rekindle:
    event = JobEvent(seq=1, type=JobEventType.STATE, at=utc_now(), attempt=1, state=ended.state, message="", data={})

    def answer(request: httpx2.Request) -> httpx2.Response:
        assert request.url.path.startswith(f"/v1/batch-predictions/{ID}")
        match request.url.path.rpartition("/")[2]:
            case "events":
                return httpx2.Response(200, text=f"id: 1\ndata: {event.model_dump_json()}\n\n")
            case "results" | "quarantine" as what:
                return httpx2.Response(200, text=f"{what} as {request.url.params['format']}")
            case _:
                return httpx2.Response(200, text=ended.model_dump_json())

    return Rekindle("http://server", http=httpx2.MockTransport(answer))


@pytest.mark.parametrize(
    ("source", "sent"),
    [
        (PrefixSource(uri="s3://pets/new/"), {"type": "prefix", "uri": "s3://pets/new/"}),
        (DatasetFiles(dataset_id=DatasetId("ds_1")), {"type": "dataset", "dataset_id": "ds_1"}),
    ],
)
def test_what_was_not_given_is_the_servers_to_choose_but_for_the_kind_of_source(
    source: PrefixSource | DatasetFiles, sent: dict[str, str]
) -> None:
    bodies: list[object] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.read()))
        return httpx2.Response(201, text=prediction(JobState.QUEUED).model_dump_json())

    with Rekindle("http://server", http=httpx2.MockTransport(answer)) as rekindle:
        rekindle.batch_predictions.create(BatchPredictionSpec(model_name="flowers", source=source))
    assert bodies == [{"model_name": "flowers", "source": sent}]


def test_one_that_succeeds_is_waited_for() -> None:
    ended = prediction(JobState.SUCCEEDED)
    assert client(ended).batch_predictions.wait(ID) == ended


@pytest.mark.parametrize(
    ("state", "failure", "said"),
    [
        (JobState.CANCELLED, None, "cancelled: Cancelled on request."),
        (
            JobState.FAILED,
            Failure(failure_class=FailureClass.USER, code="source_empty", message="There are no files."),
            "failed: There are no files.",
        ),
    ],
)
def test_one_that_does_not_says_why(state: JobState, failure: Failure | None, said: str) -> None:
    with pytest.raises(JobFailed, match=said):
        client(prediction(state, failure)).batch_predictions.wait(ID)


@pytest.mark.parametrize(("name", "form"), [("a.csv", "csv"), ("a.CSV", "csv"), ("a.jsonl", "jsonl"), ("a", "jsonl")])
def test_the_files_name_says_the_form(tmp_path: Path, name: str, form: str) -> None:
    predictions = client(prediction(JobState.SUCCEEDED)).batch_predictions
    predictions.download(ID, tmp_path / name)
    assert (tmp_path / name).read_text() == f"results as {form}"
    predictions.download_quarantine(ID, tmp_path / name)
    assert (tmp_path / name).read_text() == f"quarantine as {form}"
