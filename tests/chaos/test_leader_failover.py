"""The leader dies or freezes, or PostgreSQL restarts: another gateway goes on, and nothing is submitted twice."""

import asyncio
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.servers.fake_ray_http import FakeRayServer, running_fake_ray
from tests.servers.gateway_process import GatewayProcess, gateways
from tests.servers.postgres import PostgresProcess
from tests.servers.training import eventually

JOBS = 4


@dataclass
class Pair:
    """Two gateways on one database, and the cluster that they share."""

    both: list[GatewayProcess]
    ray: FakeRayServer
    folder: Path

    async def leader(self) -> GatewayProcess:
        async def found() -> GatewayProcess | None:
            leading = [each for each in self.both if each.leads()]
            return leading[0] if len(leading) == 1 else None

        return await eventually(found, 60)

    def other(self, gateway: GatewayProcess) -> GatewayProcess:
        return next(each for each in self.both if each is not gateway)


@contextmanager
def pair(folder: Path, database_url: str, seconds: float = 1.0) -> Iterator[Pair]:
    for label in ("daisy", "rose"):
        (folder / "images" / label).mkdir(parents=True)
        for number in range(3):
            (folder / "images" / label / f"{number}.jpg").write_bytes(b"not decoded here")
    with running_fake_ray(folder, seconds) as ray, gateways(folder, database_url, ray.url, count=2) as both:
        yield Pair(both, ray, folder)


async def start_jobs(two: Pair, gateway: GatewayProcess, count: int = JOBS) -> set[str]:
    source = {"type": "prefix", "uri": (two.folder / "images").as_uri()}
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
        dataset = await client.post("/v1/datasets", json={"name": "flowers", "source": source})
        body = {"dataset_id": dataset.json()["id"], "backbone": "rekindle_tiny"}
        answers = [await client.post("/v1/training-jobs", json=body) for _ in range(count)]
    assert [answer.status_code for answer in answers] == [201] * count
    return {answer.json()["id"] for answer in answers}


async def all_succeed(gateway: GatewayProcess, ids: set[str]) -> None:
    async def look() -> bool:
        try:
            async with httpx2.AsyncClient(base_url=gateway.url, timeout=30, trust_env=False) as client:
                response = await client.get("/v1/training-jobs", params={"limit": 100})
        except httpx2.HTTPError:
            return False
        if not response.is_success:
            return False
        jobs: list[dict[str, Any]] = response.json()["items"]
        return {job["id"] for job in jobs if job["state"] == "succeeded"} >= ids

    await eventually(look, 90)


async def submitted(two: Pair, count: int) -> None:
    async def look() -> bool:
        return len(two.ray.accepted()) >= count

    await eventually(look, 60)


def assert_each_started_once(two: Pair, ids: set[str]) -> None:
    assert sorted(two.ray.accepted()) == sorted(f"{job_id}-a1" for job_id in ids)


async def test_a_killed_leader_is_replaced_and_its_jobs_go_on(tmp_path: Path, empty_postgres_url: str) -> None:
    with pair(tmp_path, empty_postgres_url) as two:
        leader = await two.leader()
        survivor = two.other(leader)
        ids = await start_jobs(two, survivor)
        await submitted(two, 1)
        leader.kill()
        await all_succeed(survivor, ids)
        assert survivor.leads()
        assert_each_started_once(two, ids)


async def test_a_frozen_leader_wakes_as_a_follower(tmp_path: Path, empty_postgres_url: str) -> None:
    with pair(tmp_path, empty_postgres_url) as two:
        leader = await two.leader()
        survivor = two.other(leader)
        ids = await start_jobs(two, survivor)
        await submitted(two, 1)
        leader.send(signal.SIGSTOP)
        try:
            await all_succeed(survivor, ids)
        finally:
            leader.send(signal.SIGCONT)

        async def follows() -> bool:
            return not leader.leads()

        await eventually(follows, 60)
        assert survivor.leads()
        later = await start_jobs(two, leader)
        await all_succeed(leader, later)
        assert_each_started_once(two, ids | later)


@pytest.fixture
def own_postgres() -> Iterator[PostgresProcess]:
    """A server that no other test uses, so that it may be restarted."""
    folder = Path(tempfile.mkdtemp(prefix="rekindle-pg-"))
    try:
        with PostgresProcess(folder) as process:
            yield process
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def test_jobs_go_on_when_postgresql_restarts(tmp_path: Path, own_postgres: PostgresProcess) -> None:
    with pair(tmp_path, own_postgres.server.url(own_postgres.server.create_database())) as two:
        ids = await start_jobs(two, await two.leader())
        await submitted(two, 1)
        await asyncio.to_thread(own_postgres.stop)
        await asyncio.to_thread(own_postgres.start)
        await all_succeed(two.both[0], ids)
        later = await start_jobs(two, two.both[1])
        await all_succeed(two.both[1], later)
        assert_each_started_once(two, ids | later)
