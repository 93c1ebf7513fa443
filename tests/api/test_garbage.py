"""Garbage as a user meets it: the gateway removes it by itself, and `rekindle gc` at once or not at all."""

import json
import os
import time
from pathlib import Path

import pytest

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.errors import SourceUnreadable
from services.runtime.objects import open_store
from services.training.garbage.operations import collect_now
from tests.servers.garbage_bucket import GarbageBucket
from tests.servers.local_stack import run_command
from tests.servers.training import TrainingGateway, eventually, training_gateway

TWO_DAYS_S = 2 * 24 * 3600


def aged(folder: Path) -> None:
    then_s = time.time() - TWO_DAYS_S
    for file in folder.rglob("*"):
        if file.is_file():
            os.utime(file, (then_s, then_s))


@pytest.fixture
def bucket(tmp_path: Path) -> GarbageBucket:
    """Garbage of two days ago, and what must stay."""
    bucket = GarbageBucket(open_store((tmp_path / "bucket").as_uri()), utc_now())
    bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    bucket.claim(bucket.job(2), 2, dead=True)
    bucket.job(3, ended=None)
    aged(tmp_path / "bucket")
    return bucket


async def test_the_leading_gateway_collects(tmp_path: Path, empty_sqlite_url: str, bucket: GarbageBucket) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, garbage_interval_s=0.1) as gateway:

        async def clean() -> bool:
            return not bucket.listed() & bucket.garbage

        await eventually(clean)
        response = await gateway.client.get("/metrics")
        assert 'rekindle_garbage_removed_objects_total{kind="checkpoints"}' in response.text
    assert bucket.listed() == bucket.kept


async def test_it_does_not_where_it_is_turned_off(tmp_path: Path, empty_sqlite_url: str, bucket: GarbageBucket) -> None:
    before = bucket.listed()
    async with training_gateway(tmp_path, empty_sqlite_url, garbage_interval_s=0) as gateway:
        await lives_on(gateway)
    assert before <= bucket.listed()


async def test_a_bucket_that_cannot_be_collected_stops_no_jobs(
    tmp_path: Path, empty_sqlite_url: str, bucket: GarbageBucket
) -> None:
    """A part of it is a link out of the bucket, which the store refuses to follow."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "bucket" / "features").symlink_to(outside)
    async with training_gateway(tmp_path, empty_sqlite_url, garbage_interval_s=0.05) as gateway:
        with pytest.raises(SourceUnreadable):
            await collect_now(gateway.settings, gateway.database, gateway.store, utc_now())
        await lives_on(gateway)


async def lives_on(gateway: TrainingGateway) -> None:
    """A whole job, from its acceptance to its version."""
    job = await gateway.job(model_name="others")
    attempt = await gateway.attempt(job["id"])
    attempt.run()
    await gateway.job_in(job["id"], "preparing")
    attempt.publish(model_name="others")
    await gateway.job_in(job["id"], "succeeded")


async def test_a_job_that_ends_leaves_no_checkpoints_and_a_model_that_is_served(
    tmp_path: Path, empty_sqlite_url: str
) -> None:
    """From the job's acceptance to its garbage, by the gateway's own records."""
    async with training_gateway(tmp_path, empty_sqlite_url, garbage_interval_s=0) as gateway:
        job = await gateway.job()
        attempt = await gateway.attempt(job["id"])
        attempt.run()
        key = names.checkpoint_manifest(attempt.job_id, 1, 0, 7)
        gateway.store.put(key, b"{}")
        later = utc_now().replace(year=utc_now().year + 1)
        await collect_now(gateway.settings, gateway.database, gateway.store, later)
        assert gateway.store.head(key) is not None
        attempt.publish()
        await gateway.job_in(job["id"], "succeeded")
        await collect_now(gateway.settings, gateway.database, gateway.store, utc_now())
        assert gateway.store.head(key) is not None
        await collect_now(gateway.settings, gateway.database, gateway.store, later)
        assert gateway.store.head(key) is None
        assert (await gateway.client.get("/v1/models/flowers/versions/1")).status_code == 200
        assert (await gateway.client.get(f"/v1/training-jobs/{job['id']}")).json()["state"] == "succeeded"


# --- the command ----------------------------------------------------------------------------------------------------


def gc(tmp_path: Path, *arguments: str, status: int = 0) -> str:
    environment = {"REKINDLE_HOME": str(tmp_path / "home"), "REKINDLE_BUCKET": (tmp_path / "bucket").as_uri()}
    result = run_command("gc", *arguments, environment=environment)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout if status == 0 else result.stderr


def test_the_command_says_what_would_go_and_then_removes_it(tmp_path: Path, bucket: GarbageBucket) -> None:
    before = bucket.listed()
    looked = json.loads(gc(tmp_path, "--dry-run", "--json"))
    assert bucket.listed() == before
    assert looked["objects"] == len(bucket.garbage)
    assert looked["size_bytes"] == sum(len(bucket.store.get(key)) for key in bucket.garbage)
    assert {each["kind"] for each in looked["removed"]} == {"checkpoints", "predictions", "dead_attempts"}
    assert f"{len(bucket.garbage)} object(s)" in gc(tmp_path)
    assert bucket.listed() == bucket.kept
    assert "no garbage" in gc(tmp_path)


def test_the_command_names_what_is_damaged(tmp_path: Path, bucket: GarbageBucket) -> None:
    bucket.damage(names.model_manifest("flowers", 1))
    assert f"in doubt: {names.model_manifest('flowers', 1)}" in gc(tmp_path, status=1)
