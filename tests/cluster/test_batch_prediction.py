"""Batch predictions on a real Ray cluster: the labels of evaluation and of serving, for every file."""

import csv
import hashlib
import json
from pathlib import Path

import pytest

from ray_cluster.serve.classifier import Answer, Classifier, Question
from ray_cluster.serve.model_tails import TailKey, load_tail
from services.contracts.batch_predictions import BatchResult, LabelledImage
from services.contracts.ids import JobId
from services.contracts.jobs import FailureClass, JobEventType, Stage
from tests.cluster.attempts import Attempts

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def labelling(attempts: Attempts, drawings: Path, undisturbed: JobId) -> JobId:
    """A batch prediction of the images that the model was trained and evaluated on, run as a Ray job."""
    job = attempts.accept_prediction(drawings, attempts.model(undisturbed))
    status = attempts.submit(job)
    assert status == "SUCCEEDED", attempts.job_logs(job)
    return job


def labelled(attempts: Attempts, result: BatchResult) -> dict[str, LabelledImage]:
    """By path."""
    lines = attempts.store.get(result.predictions_jsonl.key).decode().splitlines()
    images = [LabelledImage.model_validate_json(line) for line in lines]
    assert [image.path for image in images] == sorted({image.path for image in images})
    return {image.path: image for image in images}


def test_every_file_is_labelled_or_set_aside(attempts: Attempts, drawings: Path, labelling: JobId) -> None:
    result = attempts.predicted(labelling)
    files = {path.relative_to(drawings).as_posix(): path for path in drawings.rglob("*") if path.is_file()}
    images = labelled(attempts, result)
    (aside,) = attempts.store.get(result.quarantine_jsonl.key).decode().splitlines()
    assert (json.loads(aside)["path"], json.loads(aside)["reason"]) == ("train/stray.jpg", "zero_bytes")
    assert images.keys() | {"train/stray.jpg"} == files.keys()
    assert (result.file_count, result.image_count, result.quarantined_count) == (len(files), len(images), 1)
    assert sum(each.count for each in result.labels) == len(images)
    for path, image in images.items():
        assert image.sha256 == hashlib.sha256(files[path].read_bytes()).hexdigest()
    table = attempts.store.get(result.predictions_csv.key).decode().splitlines()
    assert [row["path"] for row in csv.DictReader(table)] == list(images)
    for ref in result.files:
        assert hashlib.sha256(attempts.store.get(ref.key)).hexdigest() == ref.sha256


def test_the_labels_are_those_of_evaluation_to_the_bit(
    attempts: Attempts, undisturbed: JobId, labelling: JobId
) -> None:
    report = attempts.model(undisturbed).predictions
    assert report is not None
    evaluated = [json.loads(line) for line in attempts.store.get(report.key).decode().splitlines()]
    assert evaluated
    images = labelled(attempts, attempts.predicted(labelling))
    for line in evaluated:
        answered = images[line["path"]]
        assert answered.sha256 == line["sha256"]
        assert [each.model_dump(include={"label", "probability"}) for each in answered.predictions] == line[
            "predictions"
        ]


def test_the_labels_are_those_of_serving_to_the_bit(
    attempts: Attempts, drawings: Path, undisturbed: JobId, labelling: JobId
) -> None:
    model = attempts.model(undisturbed)
    tail = load_tail(attempts.store, model.trunk, TailKey(model.model_name, model.version))
    served = Classifier([attempts.engine(labelling, model.trunk)], model.trunk.image_size)
    images = labelled(attempts, attempts.predicted(labelling))
    answers = served.answer([Question((drawings / path).read_bytes(), tail, 5) for path in images])
    assert all(isinstance(answer, Answer) for answer in answers)
    predictions = [answer.predictions for answer in answers if isinstance(answer, Answer)]
    assert predictions == [image.predictions for image in images.values()]


def test_it_tells_what_it_does(attempts: Attempts, labelling: JobId) -> None:
    stages = attempts.stages(labelling)
    assert list(stages) == [Stage.LIST, Stage.PREDICT, Stage.MERGE]
    assert not any(timing.skipped for timing in stages.values())
    progress = [record.data for record in attempts.records(labelling) if record.type is JobEventType.PROGRESS]
    total = attempts.predicted(labelling).file_count
    assert (progress[0]["done"], progress[-1]["done"], progress[-1]["total"]) == (0, total, total)


def test_an_empty_source_fails_at_once_and_says_why(attempts: Attempts, undisturbed: JobId, tmp_path: Path) -> None:
    job = attempts.accept_prediction(tmp_path, attempts.model(undisturbed))
    assert attempts.run(job) == 1
    outcome = attempts.outcome(job)
    assert outcome is not None
    assert outcome.failure is not None
    assert (outcome.failure.failure_class, outcome.failure.code) == (FailureClass.USER, "source_empty")
    assert tmp_path.as_uri() in outcome.failure.message
