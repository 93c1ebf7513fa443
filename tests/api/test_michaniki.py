"""Michaniki's calls, as clients of that platform make them, and what they start here."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, FailureClass, JobEventType, JobKind, JobRecord, Stage, StageTiming
from services.runtime.auth import Scope, create_key
from services.runtime.objects import open_store
from services.runtime.settings import Settings
from services.training.downloads import CHUNK_BYTES
from services.training.jobs import queries as job_queries
from tests.servers.platform import Platform, running_platform
from tests.servers.serve_fake import REJECTED
from tests.servers.training import PlayedAttempt, eventually, problem

Post = Callable[[str, dict[str, str]], Awaitable[httpx2.Response]]
CLASSES = ("salmon", "shark")
TRANSFER = {"train_bucket_prefix": "models/sharkVsalmon"}
LABEL = {"s3_bucket_prefix": "incoming", "model_name": "sharkVsalmon"}


@pytest.fixture
def bucket(s3_bucket: str) -> str:
    """The name of a bucket with images for two models and some to label. Nobody but this server may read it."""
    store = open_store(s3_bucket)
    for model in ("sharkVsalmon", "models/sharkVsalmon"):
        for split in ("train", "val"):
            for label in CLASSES:
                store.put(f"{model}/{split}/{label}/1.jpg", b"x")
    store.put("incoming/salmon4.JPEG", b"x")
    return s3_bucket.removeprefix("s3://")


@pytest.fixture(params=["multipart", "urlencoded"])
def post(request: pytest.FixtureRequest, platform: Platform) -> Post:
    """Posts a form in each of the two encodings."""

    async def send(path: str, fields: dict[str, str]) -> httpx2.Response:
        if request.param == "urlencoded":
            return await platform.client.post(path, data=fields)
        return await platform.client.post(path, files={name: (None, value) for name, value in fields.items()})

    return send


async def predict(platform: Platform, model_name: str, image: bytes = b"picture") -> httpx2.Response:
    files = {"image": ("picture.jpg", image, "image/jpeg")}
    return await platform.client.post("/inceptionV3/predict", files=files, data={"model_name": model_name})


async def info(platform: Platform, *task_ids: str) -> list[dict[str, Any]]:
    response = await platform.client.post("/tasks/info", json=[*task_ids])
    assert response.status_code == 200, response.text
    assert response.json().keys() == {"Tasks Status"}
    return response.json()["Tasks Status"]


async def poll(platform: Platform, task_id: str, status: str) -> dict[str, Any]:
    """As an old client waits for its task."""

    async def look() -> dict[str, Any] | None:
        (task,) = await info(platform, task_id)
        return task if task["status"] == status else None

    return await eventually(look)


async def record_of(platform: Platform, job_id: str) -> JobRecord:
    return JobRecord.model_validate_json(platform.store.get(names.job_spec(JobId(job_id))))


def line(path: str, *ranked: tuple[str, float]) -> bytes:
    """One of `predictions.jsonl`."""
    predictions = [{"label": label, "probability": share, "index": 0} for label, share in ranked]
    return json.dumps({"path": path, "sha256": "0" * 64, "predictions": predictions}).encode() + b"\n"


def train(attempt: PlayedAttempt, version: int, model_name: str = "sharkvsalmon") -> None:
    attempt.run()
    epoch = EpochMetrics(
        epoch=1, epochs=9, train_loss=0.1, train_accuracy=0.96875, validation_loss=None, validation_accuracy=None
    )
    attempt.report(JobEventType.EPOCH, Stage.FIT, epoch)
    attempt.publish(version, model_name)


async def submitted(platform: Platform, count: int) -> str:
    """The id of the `count`-th job that the cluster got, as soon as it has it."""

    async def look() -> str | None:
        found = platform.ray.submissions
        return found[count - 1].metadata["job_id"] if len(found) >= count else None

    return await eventually(look)


def start_labelling(platform: Platform, bucket: str) -> asyncio.Task[httpx2.Response]:
    """The call goes on until there are labels."""
    fields = {"s3_bucket_name": bucket, **LABEL}
    return asyncio.create_task(platform.client.post("/inceptionV3/label", data=fields))


async def published(platform: Platform, bucket: str) -> None:
    """Version 1 of the model `sharkvsalmon`, by a transfer."""
    fields = {"train_bucket_name": bucket, **TRANSFER}
    task_id = (await platform.client.post("/inceptionV3/transfer", data=fields)).json()["task_id"]
    train(await platform.attempt(task_id), 1)
    await poll(platform, task_id, "SUCCESS")
    await platform.serve_version("sharkvsalmon", 1)


# --- a whole session ------------------------------------------------------------------------------------------------


async def test_an_old_clients_session(platform: Platform, post: Post, bucket: str) -> None:
    # Predict with the pretrained classifier.
    response = await predict(platform, "base")
    assert response.status_code == 200, response.text
    ranked = [{"label": "picture by base v1", "probability": 0.75}, {"label": "other", "probability": 0.25}]
    assert response.json() == {"data": {"success": True, "prediction": ranked}}

    # Make a model, and wait for it.
    response = await post("/inceptionV3/transfer", {"train_bucket_name": bucket, **TRANSFER})
    assert response.status_code == 200, response.text
    task_id = response.json()["task_id"]
    assert response.json() == {"task_id": task_id, "status": "Transfer Learning and Fine-Tuning are Initiated"}
    (task,) = await info(platform, task_id)
    assert (task["remote_task_id"], task["status"]) == (task_id, "PENDING")
    assert "final training accuracy" not in task
    train(await platform.attempt(task_id), 1)
    task = await poll(platform, task_id, "SUCCESS")
    assert (task["final training accuracy"], task["final validation accuracy"]) == (0.96875, 0.9)

    # Predict with it, under its old name.
    await platform.serve_version("sharkvsalmon", 1)
    response = await predict(platform, "sharkVsalmon")
    assert response.json()["data"]["prediction"][0]["label"] == "picture by sharkvsalmon v1"

    # Label a folder with it: the answer comes when all is labelled.
    labelling = asyncio.create_task(post("/inceptionV3/label", {"s3_bucket_name": bucket, **LABEL}))
    label_id = await submitted(platform, 2)
    lines = line("salmon4.JPEG", ("shark", 1.0), ("salmon", 0.0)) + line("shark1.JPEG", ("shark", 0.75))
    (await platform.attempt(label_id)).predict({"predictions.jsonl": lines})
    response = await labelling
    assert response.status_code == 200, response.text
    first = [{"label": "shark", "probability": 1.0}, {"label": "salmon", "probability": 0.0}]
    assert response.json() == {
        "data": [
            {"image name": "salmon4.JPEG", "prediction": first},
            {"image name": "shark1.JPEG", "prediction": [{"label": "shark", "probability": 0.75}]},
        ]
    }
    assert response.headers["link"] == f'</v1/batch-predictions/{label_id}>; rel="describedby"'

    # Train it again on more images, and predict with what comes out.
    fields = {"train_bucket_name": bucket, "train_bucket_prefix": "sharkVsalmon", "nb_epoch": "3", "batch_size": "2"}
    response = await post("/inceptionV3/retrain", fields)
    assert response.status_code == 200, response.text
    again_id = response.json()["task_id"]
    assert response.json() == {"task_id": again_id, "status": "Retraining and Fine-Tuning are Initiated"}
    train(await platform.attempt(again_id), 2)
    await poll(platform, again_id, "SUCCESS")
    await platform.serve_version("sharkvsalmon", 2)

    async def newest() -> bool:
        answer = (await predict(platform, "sharkVsalmon")).json()
        return answer["data"]["prediction"][0]["label"] == "picture by sharkvsalmon v2"

    await eventually(newest)

    # Begin once more, and think better of it.
    cancelled_id = (await post("/inceptionV3/retrain", fields)).json()["task_id"]
    (await platform.attempt(cancelled_id)).run()
    response = await platform.client.get("/tasks/cancel", params={"remote_task_id": cancelled_id})
    assert response.status_code == 200, response.text
    assert response.json() == {"Tasks Status": {"remote_task_id": cancelled_id, "status": "REVOKED"}}
    assert response.headers["cache-control"] == "no-store"
    await poll(platform, cancelled_id, "REVOKED")

    tasks = await info(platform, cancelled_id, task_id, label_id, again_id)
    assert [(task["remote_task_id"], task["status"]) for task in tasks] == [
        (cancelled_id, "REVOKED"),
        (task_id, "SUCCESS"),
        (label_id, "SUCCESS"),
        (again_id, "SUCCESS"),
    ]
    assert "final training accuracy" not in tasks[2]


@pytest.mark.parametrize("call", ["predict", "transfer"])
async def test_the_headers_of_michanikis_own_readme_are_understood(platform: Platform, bucket: str, call: str) -> None:
    """Its curl commands set a boundary by hand, and curl adds the one that it uses behind it."""
    fields = {
        "train_bucket_name": bucket.encode(),
        "train_bucket_prefix": b"models/sharkVsalmon",
        "model_name": b"base",
    }
    parts = [b'--own\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\npicture\r\n']
    parts += [
        b'--own\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in fields.items()
    ]
    kind = "multipart/form-data; boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW; boundary=own"
    headers = {
        "Content-Type": kind,
        "Cache-Control": "no-cache",
        "Postman-Token": "eeedb319-2218-44b9-86eb-63a3a1f62e14",
    }
    response = await platform.client.post(
        f"/inceptionV3/{call}", content=b"".join([*parts, b"--own--\r\n"]), headers=headers
    )
    assert response.status_code == 200, response.text
    assert response.json().keys() in ({"data"}, {"task_id", "status"})


# --- what the calls start -------------------------------------------------------------------------------------------


async def test_transfer_trains_inception_v3_on_the_prefix(platform: Platform, bucket: str) -> None:
    fields = {"train_bucket_name": bucket, "train_bucket_prefix": "/models/sharkVsalmon/", "extra": "ignored"}
    response = await platform.client.post("/inceptionV3/transfer", data=fields)
    record = await record_of(platform, response.json()["task_id"])
    assert record.spec is not None
    assert (record.model_name, record.spec.parent) == ("sharkvsalmon", None)
    assert (record.spec.backbone, record.spec.weights, record.spec.train) == ("inception_v3", None, "head")
    assert record.source_uri == f"s3://{bucket}/models/sharkVsalmon"
    (dataset,) = (await platform.client.get("/v1/datasets")).json()["items"]
    assert (dataset["name"], dataset["id"]) == ("sharkvsalmon", record.spec.dataset_id)
    assert dataset["layout"]["splits"] == ["train", "validation"]


async def test_the_operator_chooses_backbone_and_weights(tmp_path: Path, empty_sqlite_url: str, bucket: str) -> None:
    weights = tmp_path / "weights.h5"
    options = {"legacy_backbone": "mobilenet_v2", "legacy_weights": weights.as_uri(), "legacy_weights_sha256": "a" * 64}
    async with running_platform(tmp_path, empty_sqlite_url, **options) as platform:
        fields = {"train_bucket_name": bucket, **TRANSFER}
        found = problem(await platform.client.post("/inceptionV3/transfer", data=fields), 422, "weights_unusable")
        assert weights.as_uri() in found["detail"]
        weights.write_bytes(b"x")
        response = await platform.client.post("/inceptionV3/transfer", data=fields)
        spec = (await platform.read(response.json()["task_id"]))["spec"]
        assert spec["backbone"] == "mobilenet_v2"
        assert spec["weights"] == {"uri": weights.as_uri(), "sha256": "a" * 64}


@pytest.mark.parametrize("weights", ["imagenet", "", "weights.h5", "https://host/weights.h5"])
def test_weights_that_no_job_could_read_are_refused_at_the_start(weights: str) -> None:
    with pytest.raises(ValidationError, match="legacy_weights"):
        Settings(legacy_weights=weights)


async def test_retrain_goes_on_from_the_newest_version(platform: Platform, bucket: str) -> None:
    await published(platform, bucket)
    fields = {"train_bucket_name": bucket, "train_bucket_prefix": "sharkVsalmon"}
    response = await platform.client.post("/inceptionV3/retrain", data=fields)
    spec = (await platform.read(response.json()["task_id"]))["spec"]
    assert spec["parent"] == {"model_name": "sharkvsalmon", "version": 1}
    # The parent's, not those of new models.
    assert (spec["backbone"], spec["image_size"], spec["epochs"]) == ("rekindle_tiny", 64, 100)


async def test_label_is_a_batch_prediction_with_michanikis_number_of_labels(platform: Platform, bucket: str) -> None:
    await published(platform, bucket)
    labelling = start_labelling(platform, bucket)
    label_id = await submitted(platform, 2)
    record = await record_of(platform, label_id)
    assert record.prediction is not None
    assert (record.kind, record.model_name, record.model_version) == (JobKind.PREDICT, "sharkvsalmon", 1)
    assert (record.prediction.top_k, record.source_uri) == (50, f"s3://{bucket}/incoming")
    (await platform.attempt(label_id)).predict({})
    response = await labelling
    assert (response.status_code, response.json()) == (200, {"data": []})


async def test_a_repeated_call_with_the_same_key_starts_nothing_twice(platform: Platform, bucket: str) -> None:
    headers = {"Idempotency-Key": "one"}
    fields = {"train_bucket_name": bucket, "train_bucket_prefix": "sharkVsalmon"}

    async def send(call: str) -> httpx2.Response:
        return await platform.client.post(f"/inceptionV3/{call}", data=fields, headers=headers)

    made = {(await send("transfer")).json()["task_id"] for _ in range(3)}
    assert len(made) == 1
    assert len((await platform.client.get("/v1/datasets")).json()["items"]) == 1
    train(await platform.attempt(*made), 1)
    await poll(platform, *made, "SUCCESS")
    problem(await send("retrain"), 422, "idempotency_key_reused")


# --- labels that take long ------------------------------------------------------------------------------------------


async def test_labels_that_take_long_are_a_task_that_the_same_call_waits_for_again(
    tmp_path: Path, empty_sqlite_url: str, bucket: str
) -> None:
    async with running_platform(tmp_path, empty_sqlite_url, legacy_label_wait_s=0.2) as platform:
        await published(platform, bucket)

        async def send(key: str) -> httpx2.Response:
            fields = {"s3_bucket_name": bucket, **LABEL}
            return await platform.client.post("/inceptionV3/label", data=fields, headers={"Idempotency-Key": key})

        response = await send("monday")
        assert response.status_code == 202
        task_id = response.json()["task_id"]
        assert response.json() == {"task_id": task_id, "status": "Labeling is Initiated"}
        assert (await info(platform, task_id))[0]["status"] == "PENDING"
        assert (await send("monday")).json()["task_id"] == task_id
        assert (await send("tuesday")).json()["task_id"] != task_id
        (await platform.attempt(task_id)).predict({"predictions.jsonl": line("a.jpg", ("shark", 0.5))})
        await poll(platform, task_id, "SUCCESS")
        response = await send("monday")
        assert response.status_code == 200
        assert [image["image name"] for image in response.json()["data"]] == ["a.jpg"]


async def test_a_server_that_stops_does_not_wait_for_labels(platform: Platform, bucket: str) -> None:
    await published(platform, bucket)
    labelling = start_labelling(platform, bucket)
    await submitted(platform, 2)
    assert not labelling.done()
    platform.app.state.training.ending.set()
    platform.app.state.training.changed.send()
    async with asyncio.timeout(5):
        assert (await labelling).status_code == 202


async def test_many_labels_come_whole(platform: Platform, bucket: str) -> None:
    await published(platform, bucket)
    paths = [f"{number:06d} {'x' * 80}.jpg" for number in range(3 * CHUNK_BYTES // 240)]
    lines = b"".join(line(path, ("shark", 0.5), ("salmon", 0.25)) for path in paths)
    assert len(lines) > 2 * CHUNK_BYTES
    labelling = start_labelling(platform, bucket)
    label_id = await submitted(platform, 2)
    (await platform.attempt(label_id)).predict({"predictions.jsonl": lines})
    data = (await labelling).json()["data"]
    assert [image["image name"] for image in data] == paths
    assert {json.dumps(image["prediction"]) for image in data} == {
        json.dumps([{"label": "shark", "probability": 0.5}, {"label": "salmon", "probability": 0.25}])
    }


@pytest.mark.parametrize(
    ("failure", "status", "code"), [("source_empty", 422, "source_empty"), ("broken", 409, "conflict")]
)
async def test_labels_that_cannot_be_had_are_a_problem(
    platform: Platform, bucket: str, failure: str, status: int, code: str
) -> None:
    await published(platform, bucket)
    labelling = start_labelling(platform, bucket)
    task_id = await submitted(platform, 2)
    (await platform.attempt(task_id)).fail(FailureClass.USER, failure, "It is all wrong.")
    assert "It is all wrong." in problem(await labelling, status, code)["detail"]
    task = await poll(platform, task_id, "FAILURE")
    assert "It is all wrong." in task["reason"]


# --- forms that are refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["transfer", "retrain"])
@pytest.mark.parametrize(
    ("changed", "status", "code", "said"),
    [
        ({"train_bucket_name": None}, 422, "validation_failed", "train_bucket_name"),
        ({"train_bucket_prefix": None}, 422, "validation_failed", "train_bucket_prefix"),
        ({"train_bucket_prefix": "//"}, 422, "validation_failed", "name a folder"),
        ({"train_bucket_prefix": "models/cats & dogs"}, 422, "validation_failed", "can be no model's name"),
        ({"train_bucket_prefix": "models/base"}, 422, "validation_failed", "another name"),
        ({"train_bucket_prefix": "x" * 701}, 422, "validation_failed", "700"),
        ({"train_bucket_name": "elsewhere/up"}, 422, "validation_failed", "train_bucket_name"),
        ({"train_bucket_name": "elsewhere"}, 403, "source_not_allowed", "s3://mine/"),
        ({"train_bucket_prefix": "../models/flowers"}, 403, "source_not_allowed", "climbs"),
    ],
)
async def test_a_training_form_that_cannot_be_carried_out_starts_nothing(
    tmp_path: Path, empty_sqlite_url: str, call: str, changed: dict[str, str | None], status: int, code: str, said: str
) -> None:
    async with running_platform(tmp_path, empty_sqlite_url, allowed_sources=("s3://mine/",)) as platform:
        await platform.serve_version("flowers", 1, listed=True)
        fields = {"train_bucket_name": "mine", "train_bucket_prefix": "models/flowers", **changed}
        sent = {name: value for name, value in fields.items() if value is not None}
        response = await platform.client.post(f"/inceptionV3/{call}", data=sent)
        assert said in problem(response, status, code)["detail"]
        for path in ("/v1/datasets", "/v1/training-jobs"):
            assert (await platform.client.get(path)).json()["items"] == []


@pytest.mark.parametrize("field", ["nb_epoch", "batch_size"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5"])
async def test_epochs_and_batch_size_must_be_numbers(platform: Platform, bucket: str, field: str, value: str) -> None:
    fields = {"train_bucket_name": bucket, **TRANSFER, field: value}
    response = await platform.client.post("/inceptionV3/retrain", data=fields)
    assert field in problem(response, 422, "validation_failed")["detail"]


async def test_a_prefix_without_images_and_a_bucket_that_is_not_there(platform: Platform, bucket: str) -> None:
    async def transfer(name: str, prefix: str) -> httpx2.Response:
        fields = {"train_bucket_name": name, "train_bucket_prefix": prefix}
        return await platform.client.post("/inceptionV3/transfer", data=fields)

    problem(await transfer(bucket, "models/nothing"), 422, "dataset_empty")
    problem(await transfer("no-such-bucket-anywhere", "models/x"), 422, "source_unreadable")
    assert (await platform.client.get("/v1/training-jobs")).json()["items"] == []


async def test_a_model_that_is_not_there_cannot_be_trained_again(platform: Platform, bucket: str) -> None:
    response = await platform.client.post("/inceptionV3/retrain", data={"train_bucket_name": bucket, **TRANSFER})
    assert "'sharkvsalmon'" in problem(response, 404, "not_found")["detail"]
    assert (await platform.client.get("/v1/datasets")).json()["items"] == []


@pytest.mark.parametrize(
    ("changed", "status", "code", "said"),
    [
        ({"model_name": None}, 422, "validation_failed", "model_name"),
        ({"model_name": "cats & dogs"}, 422, "validation_failed", "can be no model's name"),
        ({"model_name": "weeds"}, 404, "not_found", "'weeds'"),
        ({"s3_bucket_name": None}, 422, "validation_failed", "s3_bucket_name"),
        ({"s3_bucket_prefix": ""}, 422, "validation_failed", "s3_bucket_prefix"),
        ({"s3_bucket_name": "elsewhere"}, 403, "source_not_allowed", "s3://mine/"),
    ],
)
async def test_a_label_form_that_cannot_be_carried_out_starts_nothing(
    tmp_path: Path, empty_sqlite_url: str, changed: dict[str, str | None], status: int, code: str, said: str
) -> None:
    async with running_platform(tmp_path, empty_sqlite_url, allowed_sources=("s3://mine/",)) as platform:
        await platform.serve_version("flowers", 1, listed=True)
        fields = {"s3_bucket_name": "mine", "s3_bucket_prefix": "incoming", "model_name": "flowers", **changed}
        sent = {name: value for name, value in fields.items() if value is not None}
        response = await platform.client.post("/inceptionV3/label", data=sent)
        assert said in problem(response, status, code)["detail"]
        assert (await platform.client.get("/v1/batch-predictions")).json()["items"] == []


# --- tasks ----------------------------------------------------------------------------------------------------------


async def test_a_running_task_is_pending_and_says_more_beside(platform: Platform, bucket: str) -> None:
    fields = {"train_bucket_name": bucket, **TRANSFER}
    task_id = (await platform.client.post("/inceptionV3/transfer", data=fields)).json()["task_id"]
    attempt = await platform.attempt(task_id)
    attempt.run()
    timing = StageTiming(stage=Stage.FIT, attempt=1, started_at=utc_now(), finished_at=None)
    attempt.report(JobEventType.STAGE, Stage.FIT, timing)
    await platform.job_in(task_id, "training")
    (task,) = await info(platform, task_id)
    assert (task["status"], task["state"]) == ("PENDING", "training")


async def test_tasks_that_nobody_started_are_named(platform: Platform, bucket: str) -> None:
    fields = {"train_bucket_name": bucket, **TRANSFER}
    task_id = (await platform.client.post("/inceptionV3/transfer", data=fields)).json()["task_id"]
    own_id = "job_" + "1" * 24  # of a kind that users do not know
    record = JobRecord(
        job_id=JobId(own_id),
        kind=JobKind.IMPORT_BASE,
        model_name="base",
        created_at=utc_now(),
        spec=None,
        source_uri=None,
    )
    async with platform.database.transaction() as session:
        row = job_queries.new_row(record)
        row.state = "succeeded"
        session.add(row)
    unknown = ["job_" + "0" * 24, "6d0bfe3e-9f4c-4c5e-8a51-3a1f2f1b0c11", "", "\0", own_id]
    response = await platform.client.post("/tasks/info", json=[unknown[0], task_id, *unknown[1:]])
    assert problem(response, 404, "not_found")["details"] == {"task_ids": unknown}
    for each in unknown:
        response = await platform.client.get("/tasks/cancel", params={"remote_task_id": each})
        assert problem(response, 404, "not_found")["details"] == {"task_ids": [each]}
    assert await info(platform) == []


@pytest.mark.parametrize("body", [{"task_ids": []}, "job_1", [1], ["x"] * 201, None])
async def test_info_wants_a_list_of_ids(platform: Platform, body: Any) -> None:
    problem(await platform.client.post("/tasks/info", json=body), 422, "validation_failed")


async def test_a_task_that_has_ended_is_not_cancelled(platform: Platform, bucket: str) -> None:
    await published(platform, bucket)
    (job,) = (await platform.client.get("/v1/training-jobs")).json()["items"]
    response = await platform.client.get("/tasks/cancel", params={"remote_task_id": job["id"]})
    assert "succeeded already" in problem(response, 409, "conflict")["detail"]
    problem(await platform.client.get("/tasks/cancel"), 422, "validation_failed")


async def test_a_label_task_is_cancelled_and_cancelling_again_changes_nothing(platform: Platform, bucket: str) -> None:
    await published(platform, bucket)
    labelling = start_labelling(platform, bucket)
    task_id = await submitted(platform, 2)
    for _ in range(2):
        response = await platform.client.get("/tasks/cancel", params={"remote_task_id": task_id})
        assert response.json()["Tasks Status"] == {"remote_task_id": task_id, "status": "REVOKED"}
    assert "been cancelled" in problem(await labelling, 409, "conflict")["detail"]
    await poll(platform, task_id, "REVOKED")


# --- predictions ----------------------------------------------------------------------------------------------------

FILE = ("a.jpg", b"picture", "image/jpeg")


@pytest.mark.parametrize(
    ("parts", "status", "code", "said"),
    [
        ({"data": {"model_name": "base"}}, 415, "unsupported_media_type", "x-www-form-urlencoded"),
        ({"json": {"model_name": "base"}}, 415, "unsupported_media_type", "application/json"),
        ({"content": b"picture"}, 415, "unsupported_media_type", "missing"),
        ({"files": {"model_name": (None, "base")}}, 422, "validation_failed", "body.image"),
        ({"files": {"model_name": (None, "base"), "image": (None, "x")}}, 422, "validation_failed", "body.image"),
        ({"files": {"image": FILE}}, 422, "validation_failed", "body.model_name"),
        ({"files": {"image": FILE, "model_name": FILE}}, 422, "validation_failed", "body.model_name"),
        ({"files": {"image": FILE}, "data": {"model_name": ""}}, 422, "validation_failed", "body.model_name"),
        ({"files": {"image": FILE}, "data": {"model_name": "a b"}}, 422, "validation_failed", "no model's name"),
        ({"files": {"image": FILE}, "data": {"model_name": "weeds"}}, 404, "not_found", "'weeds'"),
        ({"files": {"image": ("a", REJECTED)}, "data": {"model_name": "base"}}, 422, "image_rejected", "not an image"),
        (
            {"content": b"x", "headers": {"content-type": "multipart/form-data"}},
            400,
            "invalid_request",
            "boundary",
        ),
    ],
)
async def test_a_prediction_that_cannot_be_made_is_a_problem(
    platform: Platform, parts: dict[str, Any], status: int, code: str, said: str
) -> None:
    response = await platform.client.post("/inceptionV3/predict", **parts)
    assert said in problem(response, status, code)["detail"]


async def test_of_several_images_the_first_counts_and_other_fields_are_ignored(platform: Platform) -> None:
    files = [("image", ("1.jpg", b"one")), ("image", ("2.jpg", b"two")), ("note", (None, "hello"))]
    response = await platform.client.post("/inceptionV3/predict", files=files, data={"model_name": "base"})
    assert response.json()["data"]["prediction"][0]["label"] == "one by base v1"


async def test_an_image_that_is_too_large_is_refused(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with running_platform(tmp_path, empty_sqlite_url, max_upload_bytes=2000) as platform:
        problem(await predict(platform, "base", b"x" * 2001), 413, "payload_too_large")
        assert (await predict(platform, "base", b"x" * 1000)).status_code == 200


async def test_a_model_that_does_not_come_up_is_a_503_and_no_hang(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with running_platform(tmp_path, empty_sqlite_url, predict_deadline_s=0.3) as platform:
        platform.serve.deployed.clear()
        response = await predict(platform, "base")
        problem(response, 503, "model_loading")
        assert int(response.headers["retry-after"]) > 0


# --- keys -----------------------------------------------------------------------------------------------------------


async def test_each_call_needs_the_scope_of_the_call_that_replaces_it(
    tmp_path: Path, empty_sqlite_url: str, bucket: str
) -> None:
    async with running_platform(tmp_path, empty_sqlite_url) as platform:
        await published(platform, bucket)
        fields = {"train_bucket_name": bucket, **TRANSFER}
        job_id = (await platform.client.post("/inceptionV3/transfer", data=fields)).json()["task_id"]
        body = {"model_name": "sharkvsalmon", "source": {"type": "prefix", "uri": f"s3://{bucket}/incoming/"}}
        label_id = (await platform.client.post("/v1/batch-predictions", json=body)).json()["id"]
        keys = {scope: (await create_key(platform.database, "k", [scope])).plaintext for scope in Scope}
    options = {"require_api_keys": True, "legacy_label_wait_s": 0}
    async with running_platform(tmp_path, empty_sqlite_url, **options) as platform:
        await platform.serve_version("sharkvsalmon", 1)

        async def allowed(headers: dict[str, str]) -> dict[str, int]:
            client = platform.client
            client.headers.pop("authorization", None)
            client.headers.update(headers)
            label_fields = {"s3_bucket_name": bucket, **LABEL}
            responses = {
                "predict": await predict(platform, "base"),
                "transfer": await client.post("/inceptionV3/transfer", data=fields),
                "retrain": await client.post("/inceptionV3/retrain", data=fields),
                "label": await client.post("/inceptionV3/label", data=label_fields),
                "info of training": await client.post("/tasks/info", json=[job_id]),
                "info of labels": await client.post("/tasks/info", json=[label_id]),
                "cancel training": await client.get("/tasks/cancel", params={"remote_task_id": job_id}),
                "cancel labels": await client.get("/tasks/cancel", params={"remote_task_id": label_id}),
            }
            return {call: response.status_code for call, response in responses.items()}

        assert set((await allowed({})).values()) == {401}
        permitted = {
            Scope.READ: {"info of training"},
            Scope.TRAIN: {"transfer", "retrain", "cancel training"},
            Scope.PREDICT: {"predict", "label", "info of labels", "cancel labels"},
        }
        permitted[Scope.ADMIN] = set().union(*permitted.values())
        for scope, calls in permitted.items():
            found = await allowed({"authorization": f"Bearer {keys[scope]}"})
            assert {call for call, status in found.items() if status in (200, 202)} == calls, scope
            assert {status for call, status in found.items() if call not in calls} <= {403}, scope


# --- the document ---------------------------------------------------------------------------------------------------


async def test_the_document_calls_them_deprecated_and_has_both_kinds_of_forms(platform: Platform) -> None:
    paths = (await platform.client.get("/openapi.json")).json()["paths"]
    found = {
        f"{method.upper()} {path}": operation
        for path, methods in paths.items()
        for method, operation in methods.items()
        if operation.get("deprecated")
    }
    assert set(found) == {
        "POST /inceptionV3/predict",
        "POST /inceptionV3/transfer",
        "POST /inceptionV3/retrain",
        "POST /inceptionV3/label",
        "POST /tasks/info",
        "GET /tasks/cancel",
    }
    for call in ("transfer", "retrain", "label"):
        content = found[f"POST /inceptionV3/{call}"]["requestBody"]["content"]
        assert set(content) == {"multipart/form-data", "application/x-www-form-urlencoded"}
    assert set(found["POST /inceptionV3/predict"]["requestBody"]["content"]) == {"multipart/form-data"}
