"""I2: the database is deleted in the middle of jobs; `rekindle restore` brings everything back, and the jobs go on."""

import asyncio
from pathlib import Path
from typing import Any

import httpx2

from tests.servers.fake_ray_http import running_fake_ray
from tests.servers.gateway_process import GatewayProcess, gateways
from tests.servers.local_stack import run_command
from tests.servers.training import eventually


async def read(gateway: GatewayProcess, path: str) -> Any:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
        response = await client.get(path, params={"limit": 100})
    assert response.is_success, response.text
    return response.json()


async def send(gateway: GatewayProcess, method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
        response = await client.request(method, path, json=body)
    assert response.is_success, response.text
    return response.json()


async def succeeded(gateway: GatewayProcess, count: int) -> None:
    async def look() -> bool:
        jobs = (await read(gateway, "/v1/training-jobs"))["items"]
        return sum(job["state"] == "succeeded" for job in jobs) == count

    await eventually(look, 60)


async def test_a_deleted_database_comes_back_and_the_jobs_go_on(tmp_path: Path) -> None:
    for label in ("daisy", "rose"):
        (tmp_path / "images" / label).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "images" / label / f"{number}.jpg").write_bytes(b"not decoded here")
    file = tmp_path / "home" / "rekindle.db"
    url = f"sqlite+aiosqlite:///{file}"
    with running_fake_ray(tmp_path, 3.0) as ray, gateways(tmp_path, url, ray.url) as (gateway,):
        source = {"type": "prefix", "uri": (tmp_path / "images").as_uri()}
        dataset = await send(gateway, "POST", "/v1/datasets", {"name": "flowers", "source": source})
        job = {"dataset_id": dataset["id"], "backbone": "rekindle_tiny"}
        for _ in range(2):
            await send(gateway, "POST", "/v1/training-jobs", job)
        await succeeded(gateway, 2)
        await send(gateway, "PUT", "/v1/models/flowers/aliases/production", {"version": 1})
        aliases = (await read(gateway, "/v1/models/flowers"))["aliases"]
        published = (await read(gateway, "/v1/models/flowers/versions"))["items"]
        datasets = await read(gateway, "/v1/datasets")
        finished = (await read(gateway, "/v1/training-jobs"))["items"]
        unfinished = [await send(gateway, "POST", "/v1/training-jobs", job) for _ in range(2)]

        async def both_run() -> bool:
            return len(ray.accepted()) == 4

        await eventually(both_run, 30)
        gateway.kill()
        for leftover in file.parent.glob("rekindle.db*"):
            leftover.unlink()
        arguments = ("restore", "--bucket", (tmp_path / "bucket").as_uri(), "--database", url, "--yes")
        looked = await asyncio.to_thread(run_command, *arguments, "--dry-run", environment={})
        assert looked.returncode == 0, looked.stderr
        assert not file.exists()
        done = await asyncio.to_thread(run_command, *arguments, environment={"REKINDLE_HOME": str(tmp_path / "home")})
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 unfinished job(s) go on" in done.stdout

        await asyncio.to_thread(gateway.start().wait_ready)
        jobs = (await read(gateway, "/v1/training-jobs"))["items"]
        assert [each for each in jobs if each["id"] in {one["id"] for one in finished}] == finished
        assert {each["id"] for each in unfinished} <= {each["id"] for each in jobs}
        await succeeded(gateway, 4)
        versions = (await read(gateway, "/v1/models/flowers/versions"))["items"]
        assert [each["version"] for each in versions] == [4, 3, 2, 1]
        assert versions[2:] == published
        assert (await read(gateway, "/v1/models/flowers"))["aliases"] == aliases
        assert await read(gateway, "/v1/datasets") == datasets
        # The attempts that ran all the while were adopted, none was started again.
        assert sorted(ray.accepted()) == sorted(f"{each['id']}-a1" for each in finished + unfinished)
