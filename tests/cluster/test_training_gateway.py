"""The gateway and its reconciler on a real Ray cluster: the Jobs API and the Serve API as Ray really answers."""

import io
import os
import signal
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from PIL import Image

from services.local.ports import free_ports
from services.training.ray_api import HttpRayApi, RayStatus, Submission
from tests.servers.ray_local import LocalRay
from tests.servers.training import TrainingGateway, eventually, training_gateway

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

JOB_PATIENCE_S = 240


@pytest.fixture
async def ray(ray_local: LocalRay) -> AsyncIterator[HttpRayApi]:
    async with HttpRayApi(ray_local.dashboard_url) as api:
        yield api


@pytest.fixture
async def gateway(ray_local: LocalRay, tmp_path: Path, empty_sqlite_url: str) -> AsyncIterator[TrainingGateway]:
    ray = HttpRayApi(ray_local.dashboard_url)
    async with training_gateway(
        tmp_path, empty_sqlite_url, ray, reconcile_interval_s=0.3, serve_port=free_ports(1)[0]
    ) as gateway:
        yield gateway
    async with HttpRayApi(ray_local.dashboard_url) as ray:
        if await ray.serve_applications():
            await ray.deploy({"applications": []})


async def accept(gateway: TrainingGateway, **spec: Any) -> str:
    """A job on noise in two tints."""
    rng = np.random.default_rng(0)
    folder = gateway.folder / "tints"
    for label, tint in (("blue", (40, 60, 200)), ("red", (200, 60, 40))):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in range(12):
            pixels = np.clip(rng.normal(tint, 40, (80, 80, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{number}.png")
    body = {"name": "tints", "source": {"type": "prefix", "uri": folder.as_uri()}}
    dataset = (await gateway.client.post("/v1/datasets", json=body)).json()
    job = {"dataset_id": dataset["id"], "backbone": "rekindle_tiny"} | spec
    response = await gateway.client.post("/v1/training-jobs", json=job)
    assert response.status_code == 201, response.text
    return response.json()["id"]


async def job_in(gateway: TrainingGateway, job_id: str, *states: str) -> dict[str, Any]:
    async def look() -> dict[str, Any] | None:
        job = await gateway.read(job_id)
        return job if job["state"] in states else None

    return await eventually(look, JOB_PATIENCE_S)


async def test_what_ray_answers(ray: HttpRayApi) -> None:
    assert await ray.job("job_x-a1") is None
    assert await ray.logs("job_x-a1") is None
    await ray.stop("job_x-a1")
    submission = Submission("job_x-a1", "python -c 'import time; print(\"hello\", flush=True); time.sleep(600)'")
    await ray.submit(submission)
    await ray.submit(submission)

    async def status() -> RayStatus | None:
        job = await ray.job("job_x-a1")
        return None if job is None else job.status

    async def runs() -> bool:
        return await status() is RayStatus.RUNNING and "hello" in (await ray.logs("job_x-a1") or "")

    async def stopped() -> bool:
        return await status() is RayStatus.STOPPED

    await eventually(runs, 60)
    await ray.stop("job_x-a1")
    await eventually(stopped, 60)
    await ray.submit(submission)
    assert await status() is RayStatus.STOPPED


async def test_a_job_whose_driver_is_killed_is_trained_published_deployed_and_exported(
    gateway: TrainingGateway, ray: HttpRayApi
) -> None:
    job_id = await accept(gateway)
    await job_in(gateway, job_id, "preparing", "training")
    victim = await eventually(lambda: driver_of("ray_cluster.train.attempt", job_id), 60)
    os.kill(victim, signal.SIGKILL)
    done = await job_in(gateway, job_id, "succeeded", "failed")
    assert done["state"] == "succeeded", (done, (await gateway.client.get(f"/v1/training-jobs/{job_id}/logs")).text)
    assert done["attempt"] == 2
    assert done["result"]["version"] == 1
    assert "publish: done" in (await gateway.client.get(f"/v1/training-jobs/{job_id}/logs")).text
    events = await gateway.events(job_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    version = (await gateway.client.get("/v1/models/tints/versions/1")).json()
    assert version["labels"] == ["blue", "red"]

    async def deployed() -> bool:
        applications = await ray.serve_applications()
        (application,) = applications.values() or [None]
        if application is None:
            return False
        assert application.status in {"NOT_STARTED", "DEPLOYING", "RUNNING"}, application.message
        return application.status == "RUNNING"

    await eventually(deployed, JOB_PATIENCE_S)
    url = f"http://127.0.0.1:{gateway.settings.serve_port}/trunks/{version['trunk_id']}/predict"
    image = (gateway.folder / "tints" / "red" / "0.png").read_bytes()
    async with httpx2.AsyncClient(trust_env=False, timeout=60) as client:
        response = await client.post(url, params={"model": "tints", "version": 1, "top_k": 1}, content=image)
    assert response.json()["predictions"][0]["label"] == "red"
    await check_export(gateway)


async def check_export(gateway: TrainingGateway) -> None:
    """A build that is killed is followed by another, which leaves the archive."""
    route = "/v1/models/tints/versions/1/export?format=tflite"
    assert (await gateway.client.get(route)).json()["build"] == 1
    os.kill(await eventually(lambda: driver_of("ray_cluster.export.build", gateway.store.uri), 60), signal.SIGKILL)
    builds: set[int] = set()

    async def archive() -> bytes | None:
        response = await gateway.client.get(route)
        if response.status_code == 202:
            builds.add(response.json()["build"])
            return None
        assert response.status_code == 200, response.text
        return response.content

    with zipfile.ZipFile(io.BytesIO(await eventually(archive, JOB_PATIENCE_S))) as found:
        assert found.testzip() is None
        assert found.read("labels.txt") == b"blue\nred\n"
    assert max(builds) == 2


async def driver_of(module: str, argument: str) -> int | None:
    """The process id of the driver that runs the module with this argument."""
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if module in command and argument in command:
            return process.pid
    return None


async def test_a_job_is_cancelled_while_it_runs(gateway: TrainingGateway, ray: HttpRayApi) -> None:
    job_id = await accept(gateway)
    await job_in(gateway, job_id, "preparing", "training")
    assert (await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")).status_code == 202
    await job_in(gateway, job_id, "cancelled")
    job = await ray.job(f"{job_id}-a1")
    assert job is not None
    assert job.status in (RayStatus.STOPPED, RayStatus.FAILED)
    assert await driver_of("ray_cluster.train.attempt", job_id) is None
