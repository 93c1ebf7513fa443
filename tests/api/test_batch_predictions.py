"""Batch predictions over HTTP, driven to their end by the reconciler on a cluster that the tests play."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.ids import JobId
from services.contracts.jobs import (
    FailureClass,
    JobEventType,
    JobKind,
    JobOutcome,
    JobRecord,
    Progress,
    Stage,
    StageTiming,
)
from services.runtime.auth import Scope, create_key
from services.training import downloads
from services.training.ray_api import RayStatus
from tests.servers.fake_ray import FakeRay
from tests.servers.training import PlayedAttempt, TrainingGateway, problem, training_gateway

ROOT = "/v1/batch-predictions"
LINES = b'{"path":"a.jpg"}\n{"path":"b.jpg"}\n'
CONTENTS = {"predictions.jsonl": LINES, "predictions.csv": b"path\na.jpg\n", "quarantine.jsonl": b'{"path":"c.txt"}\n'}


@pytest.fixture
async def flowers(gateway: TrainingGateway) -> TrainingGateway:
    """A gateway with two versions of the model `flowers`."""
    await gateway.publish(1)
    await gateway.publish(2)
    return gateway


def label(attempt: PlayedAttempt, done: int, total: int = 9) -> None:
    """Some way into the labelling."""
    attempt.run()
    timing = StageTiming(stage=Stage.PREDICT, attempt=attempt.number, started_at=utc_now(), finished_at=None)
    attempt.report(JobEventType.STAGE, Stage.PREDICT, timing)
    attempt.report(
        JobEventType.PROGRESS, Stage.PREDICT, Progress(stage=Stage.PREDICT, done=done, total=total, unit="images")
    )


# --- accepting ------------------------------------------------------------------------------------------------------


async def test_an_accepted_one_is_in_the_bucket_with_all_that_it_needs(each_gateway: TrainingGateway) -> None:
    await each_gateway.publish()
    made = await each_gateway.prediction(top_k=3, resources={"market": "spot"})
    record = JobRecord.model_validate_json(each_gateway.store.get(names.job_spec(JobId(made["id"]))))
    assert (record.kind, record.model_name, record.model_version) == (JobKind.PREDICT, "flowers", 1)
    assert record.source_uri == each_gateway.images()
    assert record.prediction is not None
    assert (record.prediction.top_k, record.resources.market) == (3, "spot")
    assert (made["state"], made["version"], made["result"]) == ("queued", 1, None)
    assert made["results_uri"] == f"{each_gateway.store.uri}/predictions/{made['id']}/"
    assert (await each_gateway.read(made["id"]))["spec"] == made["spec"]


@pytest.mark.parametrize(
    ("asked", "version"),
    [({}, 2), ({"version": 1}, 1), ({"alias": "production"}, 1)],
    ids=["newest", "version", "alias"],
)
async def test_which_version_is_meant_is_settled_when_it_is_accepted(
    flowers: TrainingGateway, asked: dict[str, Any], version: int
) -> None:
    alias = "/v1/models/flowers/aliases/production"
    await flowers.client.put(alias, json={"version": 1})
    made = await flowers.prediction(**asked)
    assert made["version"] == version
    await flowers.publish(3)
    await flowers.client.put(alias, json={"version": 3})
    assert (await flowers.read(made["id"]))["version"] == version
    assert made["spec"].get("alias") == asked.get("alias")


async def test_a_dataset_is_labelled_where_its_files_are(flowers: TrainingGateway) -> None:
    source = {"type": "dataset", "dataset_id": await flowers.dataset("others")}
    made = await flowers.prediction(source=source)
    record = JobRecord.model_validate_json(flowers.store.get(names.job_spec(JobId(made["id"]))))
    assert record.source_uri == flowers.images()
    assert made["spec"]["source"] == source


@pytest.mark.parametrize(
    ("spec", "status", "code", "said"),
    [
        ({"model_name": "weeds"}, 404, "not_found", "GET /v1/models lists them"),
        ({"version": 9}, 404, "not_found", "has no version 9"),
        ({"alias": "production"}, 404, "not_found", "has no alias 'production': its aliases are none"),
        ({"version": 1, "alias": "production"}, 422, "validation_failed", "not both"),
        ({"top_k": 0}, 422, "validation_failed", "top_k"),
        ({"topk": 3}, 422, "validation_failed", "topk"),
        ({"resources": {"market": "cheap"}}, 422, "validation_failed", "on_demand"),
        ({"source": {"type": "prefix", "uri": "s3://elsewhere/x/"}}, 403, "source_not_allowed", "s3://mine/"),
        ({"source": {"type": "prefix", "uri": "file:///nowhere/"}}, 422, "source_unreadable", "nowhere"),
        ({"source": {"type": "dataset", "dataset_id": "ds_" + "0" * 24}}, 404, "not_found", "GET /v1/datasets"),
        ({"source": {"type": "upload"}}, 422, "validation_failed", "dataset"),
    ],
)
async def test_a_bad_spec_is_refused_and_starts_nothing(
    tmp_path: Path, empty_sqlite_url: str, spec: dict[str, Any], status: int, code: str, said: str
) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, allowed_sources=("s3://mine/",)) as gateway:
        await gateway.publish()
        body = {"model_name": "flowers", "source": {"type": "prefix", "uri": gateway.images(daisy=1)}} | spec
        assert said in problem(await gateway.client.post(ROOT, json=body), status, code)["detail"]
        assert (await gateway.client.get(ROOT)).json()["items"] == []
        assert [info.key for info in gateway.store.list("jobs/pred_")] == []


async def test_a_deleted_version_and_an_open_upload_are_refused(flowers: TrainingGateway) -> None:
    await flowers.client.delete("/v1/models/flowers/versions/1")
    body = {"model_name": "flowers", "version": 1, "source": {"type": "prefix", "uri": flowers.images(daisy=1)}}
    problem(await flowers.client.post(ROOT, json=body), 404, "not_found")
    upload = {"name": "new", "source": {"type": "upload"}}
    dataset = (await flowers.client.post("/v1/datasets", json=upload)).json()
    body = {"model_name": "flowers", "source": {"type": "dataset", "dataset_id": dataset["id"]}}
    assert "/complete" in problem(await flowers.client.post(ROOT, json=body), 409, "dataset_not_ready")["detail"]


async def test_requests_at_a_time_with_one_key_make_one(each_gateway: TrainingGateway) -> None:
    await each_gateway.publish()
    made = await asyncio.gather(*(each_gateway.prediction(headers={"Idempotency-Key": "one"}) for _ in range(10)))
    (job_id,) = {each["id"] for each in made}
    await each_gateway.publish(2)
    again = await each_gateway.prediction(headers={"Idempotency-Key": "one"})
    assert (again["id"], again["version"]) == (job_id, 1)
    listed = (await each_gateway.client.get(ROOT)).json()["items"]
    assert [each["id"] for each in listed] == [job_id]


async def test_a_key_is_one_for_each_kind_of_job_and_body(flowers: TrainingGateway) -> None:
    headers = {"Idempotency-Key": "one"}
    body = {"dataset_id": await flowers.dataset(), "backbone": "rekindle_tiny"}
    trained = (await flowers.client.post("/v1/training-jobs", json=body, headers=headers)).json()
    made = await flowers.prediction(headers=headers)
    assert made["id"] != trained["id"]
    other = {"model_name": "flowers", "source": made["spec"]["source"], "top_k": 1}
    response = await flowers.client.post(ROOT, json=other, headers=headers)
    assert problem(response, 422, "idempotency_key_reused")["details"] == {"resource_id": made["id"]}


# --- showing --------------------------------------------------------------------------------------------------------


async def test_training_jobs_and_batch_predictions_do_not_mix(flowers: TrainingGateway) -> None:
    made = await flowers.prediction()
    job = (await flowers.client.get("/v1/training-jobs")).json()["items"][0]
    for path in ("", "/logs", "/events", "/metrics"):
        problem(await flowers.client.get(f"/v1/training-jobs/{made['id']}{path}"), 404, "not_found")
    for path in ("", "/logs", "/events", "/results", "/quarantine"):
        detail = problem(await flowers.client.get(f"{ROOT}/{job['id']}{path}"), 404, "not_found")["detail"]
        assert "no batch prediction" in detail
    problem(await flowers.client.post(f"/v1/training-jobs/{made['id']}/cancel"), 404, "not_found")
    problem(await flowers.client.post(f"{ROOT}/{job['id']}/cancel"), 404, "not_found")
    assert [each["id"] for each in (await flowers.client.get(ROOT)).json()["items"]] == [made["id"]]
    listed = (await flowers.client.get("/v1/training-jobs")).json()["items"]
    assert made["id"] not in {each["id"] for each in listed}


@pytest.mark.parametrize("job_id", ["pred_" + "0" * 24, "nonsense", "%00", "%F0%9F%8C%B9"])
@pytest.mark.parametrize("path", ["", "/logs", "/events", "/results", "/quarantine"])
async def test_an_unknown_one_is_not_found(gateway: TrainingGateway, job_id: str, path: str) -> None:
    problem(await gateway.client.get(f"{ROOT}/{job_id}{path}"), 404, "not_found")


async def test_they_are_listed_page_by_page_and_filtered(flowers: TrainingGateway) -> None:
    made = [(await flowers.prediction(top_k=number))["id"] for number in range(1, 6)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        query = {"limit": 2, **({"cursor": cursor} if cursor else {})}
        page = (await flowers.client.get(ROOT, params=query)).json()
        seen += [each["id"] for each in page["items"]]
        cursor = page["next_cursor"]
    assert seen == made[::-1]
    await flowers.client.post(f"{ROOT}/{made[2]}/cancel")
    await flowers.job_in(made[2], "cancelled")
    cancelled = (await flowers.client.get(ROOT, params={"state": "cancelled"})).json()["items"]
    assert [each["id"] for each in cancelled] == [made[2]]
    assert (await flowers.client.get(ROOT, params={"model_name": "weeds"})).json()["items"] == []


# --- running --------------------------------------------------------------------------------------------------------


async def test_one_runs_and_ends_with_results_in_the_bucket(each_gateway: TrainingGateway) -> None:
    gateway = each_gateway
    await gateway.publish()
    job_id = (await gateway.prediction())["id"]
    attempt = await gateway.attempt(job_id)
    assert gateway.ray.submissions[-1].metadata["model_name"] == "flowers"
    label(attempt, 4)
    running = await gateway.job_in(job_id, "predicting")
    assert running["progress"] == {"stage": "predict", "done": 4, "total": 9, "unit": "images"}
    result = attempt.predict(CONTENTS, quarantined=1)
    ended = await gateway.job_in(job_id, "succeeded")
    assert ended["result"] == json.loads(result.model_dump_json())
    assert ended["reason"] == "Labelled 3 image(s) with version 1 of model 'flowers'; 1 file(s) were set aside."
    outcome = JobOutcome.model_validate_json(gateway.store.get(names.job_outcome(JobId(job_id))))
    assert outcome.predicted == result
    versions = (await gateway.client.get("/v1/models/flowers/versions")).json()["items"]
    assert [each["version"] for each in versions] == [1]


async def test_an_attempt_that_dies_is_followed_by_another(flowers: TrainingGateway) -> None:
    job_id = (await flowers.prediction())["id"]
    first = await flowers.attempt(job_id)
    label(first, 4)
    await flowers.job_in(job_id, "predicting")
    first.die()
    second = await flowers.attempt(job_id, 2)
    label(second, 6)
    second.predict(CONTENTS)
    ended = await flowers.job_in(job_id, "succeeded")
    assert ended["attempt"] == 2


async def test_an_empty_source_fails_it_with_the_reason(flowers: TrainingGateway) -> None:
    made = await flowers.prediction(source={"type": "prefix", "uri": flowers.images("empty")})
    (await flowers.attempt(made["id"])).fail(FailureClass.USER, "source_empty", "There are no files.")
    ended = await flowers.job_in(made["id"], "failed")
    assert (ended["failure"]["code"], ended["attempt"]) == ("source_empty", 1)
    detail = problem(await flowers.client.get(f"{ROOT}/{made['id']}/results"), 409, "conflict")["detail"]
    assert "There are no files." in detail


async def test_one_is_cancelled(flowers: TrainingGateway) -> None:
    job_id = (await flowers.prediction())["id"]
    attempt = await flowers.attempt(job_id)
    label(attempt, 4)
    await flowers.job_in(job_id, "predicting")
    assert (await flowers.client.post(f"{ROOT}/{job_id}/cancel")).json()["state"] == "cancelling"
    await flowers.job_in(job_id, "cancelled")
    assert flowers.ray.jobs[attempt.submission_id].status is RayStatus.STOPPED
    assert (await flowers.client.post(f"{ROOT}/{job_id}/cancel")).status_code == 202
    assert "cancelled" in problem(await flowers.client.get(f"{ROOT}/{job_id}/results"), 409, "conflict")["detail"]


async def test_its_events_are_streamed_and_go_on_after_the_last(flowers: TrainingGateway) -> None:
    job_id = (await flowers.prediction())["id"]
    attempt = await flowers.attempt(job_id)
    label(attempt, 4)
    attempt.predict(CONTENTS)
    await flowers.job_in(job_id, "succeeded")
    whole = (await flowers.client.get(f"{ROOT}/{job_id}/events")).text
    ids = [line for line in whole.splitlines() if line.startswith("id: ")]
    assert ids == [f"id: {number}" for number in range(1, len(ids) + 1)]
    assert "event: progress" in whole
    rest = (await flowers.client.get(f"{ROOT}/{job_id}/events", headers={"Last-Event-ID": "3"})).text
    assert [line for line in rest.splitlines() if line.startswith("id: ")] == ids[3:]


async def test_its_log_is_rays(flowers: TrainingGateway) -> None:
    job_id = (await flowers.prediction())["id"]
    attempt = await flowers.attempt(job_id)
    flowers.ray.log_texts[attempt.submission_id] = "labelled\n"
    assert (await flowers.client.get(f"{ROOT}/{job_id}/logs")).text == "labelled\n"


# --- results --------------------------------------------------------------------------------------------------------


@pytest.fixture
async def labelled(flowers: TrainingGateway) -> str:
    """A batch prediction that has succeeded."""
    job_id = (await flowers.prediction())["id"]
    (await flowers.attempt(job_id)).predict(CONTENTS)
    await flowers.job_in(job_id, "succeeded")
    return job_id


@pytest.mark.parametrize(
    ("path", "media_type", "name"),
    [
        ("/results", "application/jsonl", "predictions.jsonl"),
        ("/results?format=jsonl", "application/jsonl", "predictions.jsonl"),
        ("/results?format=csv", "text/csv; charset=utf-8", "predictions.csv"),
        ("/quarantine", "application/jsonl", "quarantine.jsonl"),
    ],
)
async def test_results_are_downloaded(
    flowers: TrainingGateway, labelled: str, path: str, media_type: str, name: str
) -> None:
    response = await flowers.client.get(f"{ROOT}/{labelled}{path}")
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.headers["content-disposition"] == f'attachment; filename="{name}"'
    assert response.content == CONTENTS[name]


async def test_an_empty_list_is_an_empty_download(flowers: TrainingGateway, labelled: str) -> None:
    response = await flowers.client.get(f"{ROOT}/{labelled}/quarantine", params={"format": "csv"})
    assert (response.status_code, response.content) == (200, b"")


async def test_large_results_come_whole(flowers: TrainingGateway) -> None:
    job_id = (await flowers.prediction())["id"]
    lines = b"".join(b'{"path":"%08d.jpg"}\n' % number for number in range(3 * downloads.CHUNK_BYTES // 24))
    (await flowers.attempt(job_id)).predict({"predictions.jsonl": lines})
    await flowers.job_in(job_id, "succeeded")
    assert len(lines) > 2 * downloads.CHUNK_BYTES
    assert (await flowers.client.get(f"{ROOT}/{job_id}/results")).content == lines


async def test_results_are_refused_before_they_are_there_and_after_they_are_gone(
    flowers: TrainingGateway, labelled: str
) -> None:
    waiting = (await flowers.prediction())["id"]
    detail = problem(await flowers.client.get(f"{ROOT}/{waiting}/results"), 409, "conflict")["detail"]
    assert f"GET {ROOT}/{waiting}/events" in detail
    problem(await flowers.client.get(f"{ROOT}/{labelled}/results?format=xml"), 422, "validation_failed")
    flowers.store.put(names.prediction_file(JobId(labelled), "predictions.csv"), b"cut")
    problem(await flowers.client.get(f"{ROOT}/{labelled}/results?format=csv"), 500, "corrupt_object")
    flowers.store.delete([names.prediction_file(JobId(labelled), "predictions.csv")])
    problem(await flowers.client.get(f"{ROOT}/{labelled}/results?format=csv"), 404, "not_found")


# --- keys -----------------------------------------------------------------------------------------------------------


async def test_a_key_needs_the_scope_predict(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, FakeRay()) as gateway:
        await gateway.publish()
        keys = {scope: await create_key(gateway.database, "k", [scope]) for scope in Scope}
    async with training_gateway(
        tmp_path, empty_sqlite_url, keep_bucket=gateway.settings.bucket, require_api_keys=True
    ) as gateway:
        body = {"model_name": "flowers", "source": {"type": "prefix", "uri": gateway.images(daisy=1)}}
        for scope, key in keys.items():
            headers = {"Authorization": f"Bearer {key.plaintext}"}
            may = scope in (Scope.PREDICT, Scope.ADMIN)
            made = await gateway.client.post(ROOT, json=body, headers=headers)
            listed = await gateway.client.get(ROOT, headers=headers)
            assert (made.status_code, listed.status_code) == ((201, 200) if may else (403, 403)), scope
        problem(await gateway.client.post(ROOT, json=body), 401, "unauthenticated")


async def test_a_version_that_is_deleted_meanwhile_is_still_the_jobs(flowers: TrainingGateway) -> None:
    job_id = (await flowers.prediction(version=1))["id"]
    assert (await flowers.client.delete("/v1/models/flowers/versions/1")).status_code == 204
    (await flowers.attempt(job_id)).predict(CONTENTS)
    assert (await flowers.job_in(job_id, "succeeded"))["version"] == 1
