"""While no job runs a driver waits in the cluster, and the next attempt is its."""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest

from services.contracts import names
from services.contracts.ids import JobId, is_spare, submission_id
from services.contracts.jobs import Fence
from services.contracts.spare import GivenAttempt, SpareDriver
from services.training.ray_api import RayStatus
from services.training.reconciler import policy, spare
from services.training.reconciler.actor import Actor
from tests.servers.fake_ray import FakeRay
from tests.servers.training import PlayedAttempt, TrainingGateway, eventually, training_gateway


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "LOOK_S", 0.05)
    monkeypatch.setattr("services.training.reconciler.loop.SPARE_LOOK_S", 0.05)


@pytest.fixture
async def gateway(tmp_path: Path, database_url: str) -> AsyncGenerator[TrainingGateway, None]:
    async with training_gateway(tmp_path, database_url, spare_driver=True) as running:
        yield running


def newest(gateway: TrainingGateway) -> SpareDriver:
    return SpareDriver.model_validate_json(gateway.store.get(names.spare_driver()))


async def waiting(gateway: TrainingGateway, *, but: str = "") -> str:
    """The submission id of the spare driver that waits, once there is one besides `but`; it runs from now on."""

    async def look() -> str | None:
        if gateway.store.head(names.spare_driver()) is None:
            return None
        found = newest(gateway).submission_id
        return found if found != but and found in gateway.ray.jobs else None

    found = await eventually(look)
    gateway.ray.set(found, RayStatus.RUNNING)
    return found


async def given(gateway: TrainingGateway, spare_id: str) -> GivenAttempt:
    """What it was given, once it was."""

    async def look() -> GivenAttempt | None:
        return newest(gateway).given

    found = await eventually(look)
    assert newest(gateway).submission_id == spare_id
    return found


def played(gateway: TrainingGateway, job_id: str, spare_id: str) -> PlayedAttempt:
    """The first attempt of the job, in that spare driver."""

    class InSpare(PlayedAttempt):
        @property
        def submission_id(self) -> str:
            return spare_id

    return InSpare(gateway.store, gateway.ray, JobId(job_id), 1)


def set_newest(gateway: TrainingGateway, value: SpareDriver) -> None:
    gateway.store.put(names.spare_driver(), value.model_dump_json().encode())


async def test_an_attempt_is_given_to_the_driver_that_waits(gateway: TrainingGateway) -> None:
    spare_id = await waiting(gateway)
    assert is_spare(spare_id)
    assert gateway.ray.submissions[0].entrypoint.endswith(f"--id {spare_id}")

    job_id = (await gateway.job())["id"]
    assert await given(gateway, spare_id) == GivenAttempt(job_id=JobId(job_id), attempt=1)
    running = await gateway.job_in(job_id, "preparing")
    assert (running["attempt"], running["submission_id"]) == (1, spare_id)
    assert len(gateway.ray.submissions) == 1

    played(gateway, job_id, spare_id).publish()
    await gateway.job_in(job_id, "succeeded")
    assert await waiting(gateway, but=spare_id)


async def test_a_second_job_at_the_same_time_has_a_driver_of_its_own(gateway: TrainingGateway) -> None:
    spare_id = await waiting(gateway)
    first = (await gateway.job())["id"]
    await given(gateway, spare_id)
    second = (await gateway.job())["id"]
    attempt = await gateway.attempt(second)
    assert attempt.submission_id == submission_id(JobId(second), 1)
    assert [each.submission_id for each in gateway.ray.submissions] == [spare_id, f"{second}-a1"]
    assert (await gateway.read(first))["submission_id"] == spare_id


async def test_an_attempt_that_dies_in_it_is_followed_by_another(gateway: TrainingGateway) -> None:
    spare_id = await waiting(gateway)
    job_id = (await gateway.job())["id"]
    await given(gateway, spare_id)
    await gateway.job_in(job_id, "preparing")
    played(gateway, job_id, spare_id).die()
    second = await gateway.attempt(job_id, 2)
    second.run()
    second.publish()
    await gateway.job_in(job_id, "succeeded")


async def test_cancelling_stops_it(gateway: TrainingGateway) -> None:
    spare_id = await waiting(gateway)
    job_id = (await gateway.job())["id"]
    await given(gateway, spare_id)
    response = await gateway.client.post(f"/v1/training-jobs/{job_id}/cancel")
    assert response.status_code in (200, 202), response.text
    await gateway.job_in(job_id, "cancelled")
    assert gateway.ray.jobs[spare_id].status is RayStatus.STOPPED


async def test_its_log_is_the_attempt_s_also_when_another_follows(gateway: TrainingGateway) -> None:
    spare_id = await waiting(gateway)
    gateway.ray.log_texts[spare_id] = "waited\n"
    job_id = (await gateway.job())["id"]
    await given(gateway, spare_id)
    played(gateway, job_id, spare_id).die()
    await gateway.attempt(job_id, 2)
    response = await gateway.client.get(f"/v1/training-jobs/{job_id}/logs", params={"attempt": 1})
    assert response.text == "waited\n"


async def test_what_a_dead_leader_took_but_did_not_give_is_given_by_the_next_look(
    gateway: TrainingGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader dies between the two: the database says where the attempt runs, the driver does not know."""
    monkeypatch.setattr(policy, "SILENCE", policy.SILENCE / 100)
    spare_id = await waiting(gateway)
    start, lost = Actor._start, asyncio.Event()

    async def loses_the_first(*arguments: Any, **options: Any) -> bool:
        if lost.is_set():
            return await start(*arguments, **options)
        lost.set()
        return True

    monkeypatch.setattr(Actor, "_start", loses_the_first)
    job_id = (await gateway.job())["id"]
    assert (await given(gateway, spare_id)).job_id == job_id
    assert lost.is_set()
    assert (await gateway.read(job_id))["attempt"] == 1
    assert Fence.model_validate_json(gateway.store.get(names.job_fence(JobId(job_id)))).attempt == 1


async def test_one_that_was_given_another_attempt_is_followed_by_a_driver_of_the_job_s_own(
    gateway: TrainingGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its leader took it for an attempt and died; the successor took it for another one."""
    monkeypatch.setattr(policy, "SILENCE", policy.SILENCE / 100)
    spare_id = await waiting(gateway)
    give, other = spare.give, GivenAttempt(job_id=JobId("job_other"), attempt=1)

    def comes_too_late(*arguments: Any) -> bool:
        set_newest(gateway, SpareDriver(submission_id=spare_id, given=other))
        return give(*arguments)

    monkeypatch.setattr(spare, "give", comes_too_late)
    job_id = (await gateway.job())["id"]
    second = await gateway.attempt(job_id, 2)
    assert second.submission_id == submission_id(JobId(job_id), 2)
    assert newest(gateway).given == other


async def test_one_that_died_is_replaced_and_one_that_cannot_start_is_not_tried_all_the_time(
    gateway: TrainingGateway,
) -> None:
    first = await waiting(gateway)
    set_newest(gateway, SpareDriver(submission_id=first, ready=True))
    gateway.ray.set(first, RayStatus.FAILED)
    second = await waiting(gateway, but=first)
    for _ in range(3):
        gateway.ray.set(second, RayStatus.FAILED)
        second = await waiting(gateway, but=second)
    # The fifth would come after 0.4 s and more: 0.05 s, doubled for each that died before it was ready.
    count = len(gateway.ray.submissions)
    gateway.ray.set(second, RayStatus.FAILED)
    await asyncio.sleep(0.2)
    assert len(gateway.ray.submissions) == count


async def test_a_record_that_cannot_be_read_is_replaced(gateway: TrainingGateway) -> None:
    first = await waiting(gateway)
    gateway.store.put(names.spare_driver(), b"{")

    async def look() -> bool:
        return gateway.store.get(names.spare_driver()) != b"{"

    await eventually(look)
    assert newest(gateway).submission_id != first


async def test_a_successor_keeps_the_one_that_waits(tmp_path: Path, database_url: str) -> None:
    ray = FakeRay()
    async with training_gateway(tmp_path, database_url, ray, spare_driver=True) as gateway:
        first = await waiting(gateway)
    async with training_gateway(tmp_path, database_url, ray, spare_driver=True) as gateway:
        job_id = ""

        async def job_in_it() -> bool:
            nonlocal job_id
            await asyncio.sleep(0.2)  # it may be the first that looks
            job_id = job_id or (await gateway.job())["id"]
            return newest(gateway).given is not None

        await eventually(job_in_it)
        assert (newest(gateway).submission_id, len(ray.submissions)) == (first, 1)


async def test_none_is_kept_where_none_is_wanted(tmp_path: Path, database_url: str) -> None:
    ray = FakeRay()
    async with training_gateway(tmp_path, database_url, ray, spare_driver=True) as gateway:
        first = await waiting(gateway)
    async with training_gateway(tmp_path, database_url, ray, spare_driver=False) as gateway:

        async def retired() -> bool:
            return newest(gateway).submission_id == spare.NOBODY

        await eventually(retired)
        job_id = (await gateway.job())["id"]
        assert (await gateway.attempt(job_id)).submission_id == f"{job_id}-a1"
    assert first in ray.jobs
