"""Retraining over HTTP: what a job takes from its parent, and which parents are refused."""

from typing import Any

import httpx2
import pytest

from services.contracts import names
from services.contracts.ids import JobId
from services.contracts.jobs import JobRecord, ParentVersion
from services.contracts.models import ClassComparison, ParentComparison
from services.training.models import queries
from tests.servers.training import TrainingGateway, make_manifest, problem

COMPARISON = ParentComparison(
    parent=ParentVersion(model_name="flowers", version=1),
    split="test",
    image_count=4,
    left_out_count=1,
    parent_accuracy=0.5,
    accuracy=0.75,
    improved_count=2,
    worsened_count=1,
    trained_by_parent_count=0,
    unseen_parent_accuracy=0.5,
    unseen_accuracy=0.75,
    added_classes=["tulip"],
    removed_classes=[],
    renamed_classes={},
    classes=[ClassComparison(label="daisy", support=4, parent_recall=0.5, recall=0.75)],
)


async def publish(gateway: TrainingGateway, version: int, comparison: ParentComparison | None = None) -> None:
    manifest = make_manifest(version).model_copy(update={"parent_comparison": comparison})
    async with gateway.database.transaction() as session:
        await queries.insert_version(session, manifest)


async def retrain(gateway: TrainingGateway, **spec: Any) -> httpx2.Response:
    body = {"dataset_id": await gateway.dataset("garden"), "parent": {"model_name": "flowers"}} | spec
    return await gateway.client.post("/v1/training-jobs", json=body)


async def test_a_job_goes_on_from_the_newest_version(each_gateway: TrainingGateway) -> None:
    await publish(each_gateway, 1)
    await publish(each_gateway, 2)
    response = await retrain(each_gateway)
    assert response.status_code == 201, response.text
    job = response.json()
    assert job["model_name"] == "flowers"
    spec = job["spec"]
    assert spec["parent"] == {"model_name": "flowers", "version": 2}
    assert (spec["backbone"], spec["weights"], spec["image_size"]) == ("rekindle_tiny", "bundled", 64)
    record = JobRecord.model_validate_json(each_gateway.store.get(names.job_spec(JobId(job["id"]))))
    assert record.spec is not None
    assert record.spec.model_dump(mode="json") == spec


async def test_a_repeated_request_keeps_the_parent_it_got(gateway: TrainingGateway) -> None:
    await publish(gateway, 1)
    body = {"dataset_id": await gateway.dataset(), "parent": {"model_name": "flowers"}}
    headers = {"Idempotency-Key": "one"}
    first = await gateway.client.post("/v1/training-jobs", json=body, headers=headers)
    await publish(gateway, 2)
    again = await gateway.client.post("/v1/training-jobs", json=body, headers=headers)
    assert again.json()["id"] == first.json()["id"]
    assert again.json()["spec"]["parent"]["version"] == 1


@pytest.mark.parametrize(
    ("spec", "status", "code", "said"),
    [
        ({"parent": {"model_name": "roses"}}, 404, "not_found", "no model 'roses'"),
        ({"parent": {"model_name": "flowers", "version": 9}}, 404, "not_found", "no version 9"),
        ({"parent": {"model_name": "flowers", "version": 0}}, 422, "validation_failed", "version"),
        ({"backbone": "mobilenet_v2"}, 422, "parent_unusable", "has backbone rekindle_tiny"),
        ({"rename_classes": {"lily": "rose"}}, 422, "parent_unusable", "'lily'"),
        ({"parent": None, "rename_classes": {"daisy": "rose"}}, 422, "validation_failed", "parent"),
        ({"model_name": "base"}, 400, "invalid_request", "choose another"),
    ],
)
async def test_a_parent_that_does_not_fit_is_refused_and_starts_nothing(
    gateway: TrainingGateway, spec: dict[str, Any], status: int, code: str, said: str
) -> None:
    await publish(gateway, 1)
    assert said in problem(await retrain(gateway, **spec), status, code)["detail"]
    assert list(gateway.store.list("jobs/")) == []


async def test_a_deleted_parent_is_not_found(gateway: TrainingGateway) -> None:
    await publish(gateway, 1)
    await publish(gateway, 2)
    assert (await gateway.client.delete("/v1/models/flowers/versions/2")).status_code == 204
    problem(await retrain(gateway, parent={"model_name": "flowers", "version": 2}), 404, "not_found")
    assert (await retrain(gateway)).json()["spec"]["parent"]["version"] == 1


async def test_a_version_shows_itself_beside_its_parent(gateway: TrainingGateway) -> None:
    await publish(gateway, 1)
    await publish(gateway, 2, COMPARISON)
    versions = (await gateway.client.get("/v1/models/flowers/versions")).json()["items"]
    assert [each["parent_comparison"] for each in versions] == [COMPARISON.model_dump(mode="json"), None]
