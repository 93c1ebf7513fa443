"""Exports of a version through the API: one build for all who ask, whatever dies, and the archive's bytes."""

import hashlib
from datetime import timedelta

import pytest

from services.contracts import names
from services.contracts.base import ObjectRef, utc_now
from services.contracts.exports import ExportFailure, ExportFormat, ExportManifest
from services.contracts.ids import JobId, export_submission_id
from services.contracts.jobs import Failure, FailureClass
from services.training.downloads import CHUNK_BYTES
from services.training.ray_api import RayStatus
from tests.servers.training import TrainingGateway, problem

ROUTE = "/v1/models/flowers/versions/1/export?format=onnx"
ARCHIVE = b"0123456789abcde\n" * (CHUNK_BYTES // 10)


@pytest.fixture
async def flowers(gateway: TrainingGateway) -> TrainingGateway:
    await gateway.publish()
    return gateway


async def submitted(flowers: TrainingGateway, build: int) -> str:
    """The build's submission id. Another one must not have been submitted."""
    version = (await flowers.client.get("/v1/models/flowers/versions/1")).json()
    ids = [each.submission_id for each in flowers.ray.submissions if "ray_cluster.export.build" in each.entrypoint]
    assert ids[-1] == export_submission_id(JobId(version["job_id"]), "onnx", build)
    assert len(ids) == build
    return ids[-1]


def finish(flowers: TrainingGateway, submission: str, data: bytes = ARCHIVE) -> ObjectRef:
    """The build leaves its archive."""
    sha256 = hashlib.sha256(data).hexdigest()
    key = names.model_export_archive("flowers", 1, "onnx", sha256)
    ref = ObjectRef(key=key, sha256=sha256, size_bytes=len(data))
    flowers.store.put(key, data)
    manifest = ExportManifest(
        model_name="flowers", version=1, format=ExportFormat.ONNX, archive=ref, created_at=utc_now()
    )
    flowers.store.put(names.model_export("flowers", 1, "onnx"), manifest.model_dump_json().encode())
    flowers.ray.set(submission, RayStatus.SUCCEEDED)
    return ref


def fail(flowers: TrainingGateway, submission: str, build: int, ago: timedelta = timedelta(0)) -> None:
    failure = Failure(failure_class=FailureClass.USER, code="weights_unusable", message="The weights are gone.")
    record = ExportFailure(build=build, failure=failure, finished_at=utc_now() - ago)
    key = names.model_export_failure("flowers", 1, "onnx", build)
    flowers.store.put(key, record.model_dump_json().encode())
    flowers.ray.set(submission, RayStatus.FAILED)


async def test_an_archive_is_built_once_and_then_comes_from_the_bucket(flowers: TrainingGateway) -> None:
    for state in (RayStatus.PENDING, RayStatus.RUNNING):
        for _ in range(2):
            response = await flowers.client.get(ROUTE)
            assert (response.status_code, response.headers["retry-after"]) == (202, "2")
            submission = await submitted(flowers, 1)
            assert response.json()["submission_id"] == submission
            # What the cluster says from the second question on.
            assert response.json()["state"] == ("pending" if state is RayStatus.PENDING else "running")
        flowers.ray.set(submission, RayStatus.RUNNING)
    ref = finish(flowers, submission)
    flowers.ray.restart()
    response = await flowers.client.get(ROUTE)
    assert (response.status_code, response.content) == (200, ARCHIVE)
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-length"] == str(len(ARCHIVE))
    assert response.headers["etag"] == f'"{ref.sha256}"'
    assert response.headers["content-disposition"] == 'attachment; filename="flowers-v1-onnx.zip"'
    assert flowers.ray.jobs == {}


async def test_a_build_that_was_killed_is_followed_by_another(flowers: TrainingGateway) -> None:
    for build in (1, 2, 3):
        assert (await flowers.client.get(ROUTE)).status_code == 202
        flowers.ray.set(await submitted(flowers, build), RayStatus.FAILED, "Job supervisor actor died\nlogs")
    shown = problem(await flowers.client.get(ROUTE), 409, "export_failed")
    assert "Ray says: Job supervisor actor died." in shown["detail"]
    assert shown["details"] == {"code": "process_lost", "build": 3}
    await submitted(flowers, 3)


async def test_a_cluster_that_lost_the_build_is_given_it_again(flowers: TrainingGateway) -> None:
    await flowers.client.get(ROUTE)
    submission = await submitted(flowers, 1)
    flowers.ray.restart()
    assert (await flowers.client.get(ROUTE)).json()["build"] == 1
    assert submission in flowers.ray.jobs


async def test_a_failure_is_told_for_a_minute(flowers: TrainingGateway) -> None:
    await flowers.client.get(ROUTE)
    fail(flowers, await submitted(flowers, 1), 1)
    for _ in range(2):
        shown = problem(await flowers.client.get(ROUTE), 409, "export_failed")
        assert "The weights are gone" in shown["detail"]
        assert shown["details"]["code"] == "weights_unusable"
    await submitted(flowers, 1)
    flowers.store.delete([names.model_export_failure("flowers", 1, "onnx", 1)])
    fail(flowers, await submitted(flowers, 1), 1, ago=timedelta(minutes=2))
    assert (await flowers.client.get(ROUTE)).status_code == 202
    await submitted(flowers, 2)


async def test_an_archive_that_is_gone_or_cut_is_built_again(flowers: TrainingGateway) -> None:
    await flowers.client.get(ROUTE)
    ref = finish(flowers, await submitted(flowers, 1))
    flowers.store.put(ref.key, b"cut")
    assert (await flowers.client.get(ROUTE)).status_code == 202
    finish(flowers, await submitted(flowers, 2))
    assert (await flowers.client.get(ROUTE)).content == ARCHIVE


async def test_what_cannot_be_exported(flowers: TrainingGateway) -> None:
    problem(await flowers.client.get(ROUTE.replace("versions/1", "versions/9")), 404, "not_found")
    problem(await flowers.client.get(ROUTE.replace("onnx", "pickle")), 422, "validation_failed")
    flowers.ray.reachable = False
    problem(await flowers.client.get(ROUTE), 503, "cluster_unavailable")
