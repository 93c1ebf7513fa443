"""I1: what was answered with a 2xx exists after the gateway was killed, and repeating a request makes nothing twice."""

import asyncio
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.servers.fake_ray_http import running_fake_ray
from tests.servers.gateway_process import GatewayProcess, gateways
from tests.servers.training import eventually

KILLS = 3
CLIENTS = 3
SEED = 20261124


@dataclass
class Accepted:
    """What clients were told."""

    ids: dict[str, set[str]] = field(default_factory=dict)
    """By Idempotency-Key: every id that an answer named."""
    files: dict[str, int] = field(default_factory=dict)
    """By upload: files that were answered."""
    aliases: dict[str, int] = field(default_factory=dict)
    """By alias: the newest version that was answered."""
    stopping: bool = False


async def persist(client: httpx2.AsyncClient, method: str, path: str, **request: Any) -> httpx2.Response:
    """Repeats the request, with the same key, until it is answered: the gateway may be dead or dying."""
    while True:
        try:
            response = await client.request(method, path, **request)
        except httpx2.HTTPError:
            await asyncio.sleep(0.02)
            continue
        if response.status_code < 500:
            assert response.is_success, response.text
            return response
        await asyncio.sleep(0.02)


async def ask_for_jobs(client: httpx2.AsyncClient, told: Accepted, dataset_id: str, name: str) -> None:
    number = 0
    body = {"dataset_id": dataset_id, "backbone": "rekindle_tiny"}
    while not told.stopping:
        key = f"{name}-{number}"
        response = await persist(client, "POST", "/v1/training-jobs", json=body, headers={"Idempotency-Key": key})
        told.ids.setdefault(key, set()).add(response.json()["id"])
        number += 1


async def upload(client: httpx2.AsyncClient, told: Accepted, name: str) -> None:
    number = 0
    while not told.stopping:
        key = f"{name}-{number}"
        body = {"name": name, "source": {"type": "upload"}}
        made = await persist(client, "POST", "/v1/datasets", json=body, headers={"Idempotency-Key": key})
        dataset_id = made.json()["id"]
        told.ids.setdefault(key, set()).add(dataset_id)
        for label in ("daisy", "rose"):
            for image in range(2):
                path = f"/v1/datasets/{dataset_id}/files/{label}/{image}.jpg"
                await persist(client, "PUT", path, content=b"not decoded here")
                told.files[dataset_id] = told.files.get(dataset_id, 0) + 1
        await persist(client, "POST", f"/v1/datasets/{dataset_id}/complete")
        number += 1


async def promote(client: httpx2.AsyncClient, told: Accepted, alias: str) -> None:
    version = 1
    while not told.stopping:
        await persist(client, "PUT", f"/v1/models/flowers/aliases/{alias}", json={"version": version})
        told.aliases[alias] = version
        version = 3 - version


async def kill_now_and_then(gateway: GatewayProcess, told: Accepted, moments: random.Random) -> None:
    for _ in range(KILLS):
        await asyncio.sleep(moments.uniform(0.2, 1.2))
        await asyncio.to_thread(gateway.kill)
        gateway.start()
        await asyncio.to_thread(gateway.wait_ready)
    told.stopping = True


async def succeeded(client: httpx2.AsyncClient, count: int) -> bool:
    jobs = (await client.get("/v1/training-jobs", params={"state": "succeeded", "limit": 100})).json()["items"]
    return len(jobs) >= count


async def every_page(client: httpx2.AsyncClient, path: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    cursor: str | None = None
    while True:
        query = {"limit": 100} | ({} if cursor is None else {"cursor": cursor})
        page = (await client.get(path, params=query)).json()
        items += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            return items


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
async def test_everything_answered_is_there_after_kills(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    database_url = request.getfixturevalue(f"empty_{kind}_url")
    told = Accepted()
    with running_fake_ray(tmp_path, 0.05) as ray, gateways(tmp_path, database_url, ray.url) as (gateway,):
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
            for label in ("daisy", "rose"):
                (tmp_path / "images" / label).mkdir(parents=True)
                for number in range(3):
                    (tmp_path / "images" / label / f"{number}.jpg").write_bytes(b"not decoded here")
            source = {"type": "prefix", "uri": (tmp_path / "images").as_uri()}
            dataset = await persist(client, "POST", "/v1/datasets", json={"name": "flowers", "source": source})
            dataset_id = dataset.json()["id"]
            for _ in range(2):
                body = {"dataset_id": dataset_id, "backbone": "rekindle_tiny"}
                await persist(client, "POST", "/v1/training-jobs", json=body)
            await eventually(lambda: succeeded(client, 2), 60)

            await asyncio.gather(
                kill_now_and_then(gateway, told, random.Random(SEED)),
                *(ask_for_jobs(client, told, dataset_id, f"jobs-{number}") for number in range(CLIENTS)),
                *(upload(client, told, f"upload-{number}") for number in range(2)),
                *(promote(client, told, f"alias-{number}") for number in range(2)),
            )

            assert told.aliases
            assert told.files
            jobs = {job["id"] for job in await every_page(client, "/v1/training-jobs")}
            datasets = {each["id"]: each for each in await every_page(client, "/v1/datasets")}
            for key, ids in told.ids.items():
                assert len(ids) == 1, f"{key} made {ids}"
                assert ids <= jobs | datasets.keys()
            # A key that was used before still gives the same.
            key, (first,) = next((key, ids) for key, ids in told.ids.items() if key.startswith("jobs-"))
            body = {"dataset_id": dataset_id, "backbone": "rekindle_tiny"}
            again = await client.post("/v1/training-jobs", json=body, headers={"Idempotency-Key": key})
            assert again.json()["id"] == first
            assert len(jobs) == 2 + sum(key.startswith("jobs-") for key in told.ids)
            for dataset_id, count in told.files.items():
                assert datasets[dataset_id]["layout"]["image_count"] == count == 4
            model = (await client.get("/v1/models/flowers")).json()
            assert {each["alias"]: each["version"] for each in model["aliases"]} == told.aliases

            await eventually(lambda: succeeded(client, min(100, len(jobs))), 90)
            accepted = ray.accepted()
            assert len(accepted) == len(set(accepted))
            assert {each.rpartition("-a")[0] for each in accepted} == jobs, "each started"
            assert [each for each in accepted if not each.endswith("-a1")] == [], "none twice"
