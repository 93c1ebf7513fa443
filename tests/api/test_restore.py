"""The database is lost and rebuilt from the bucket: users find what they had, and unfinished jobs go on."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete

from services.contracts import names
from services.contracts.base import utc_now
from services.contracts.datasets import Dataset
from services.contracts.errors import Conflict
from services.contracts.ids import JobId
from services.contracts.jobs import (
    CapacityWait,
    EpochMetrics,
    FailureClass,
    Fence,
    JobEventType,
    JobRecord,
    Progress,
    Stage,
    StageTiming,
    TrainingJobSpec,
)
from services.runtime.database import Database
from services.runtime.database.tables import ModelVersionRow
from services.runtime.objects import ObjectStore, open_store
from services.training.jobs import queries as job_queries
from services.training.models import copies, queries
from services.training.ray_api import RayStatus
from services.training.restore.operations import Restored, restore
from tests.servers.postgres import PostgresServer
from tests.servers.training import PlayedAttempt, TrainingGateway, eventually, training_gateway

NewDatabase = Callable[[], str]


@pytest.fixture(params=["sqlite", "postgres"])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[NewDatabase]:
    """Makes URLs of databases that are empty."""
    made: list[str] = []
    server: PostgresServer | None = None
    if request.param == "postgres":
        server = request.getfixturevalue("postgres_server")

    def new() -> str:
        made.append(f"database-{len(made)}" if server is None else server.create_database())
        if server is None:
            return f"sqlite+aiosqlite:///{tmp_path / made[-1] / 'rekindle.db'}"
        return server.url(made[-1])

    yield new
    for name in made:
        if server is not None:
            server.drop_database(name)


@pytest.fixture(params=["local", "s3"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("s3_bucket") if request.param == "s3" else (tmp_path / "bucket").as_uri()


async def restored(url: str, store: ObjectStore, **options: Any) -> Restored:
    database = Database(url)
    try:
        await database.migrate()
        return await restore(store, database, utc_now(), lambda *_: None, **options)
    finally:
        await database.close()


def train(attempt: PlayedAttempt, epochs: int) -> None:
    """Some way into the fit."""
    attempt.run()
    timing = StageTiming(stage=Stage.FIT, attempt=attempt.number, started_at=utc_now(), finished_at=None)
    attempt.report(JobEventType.STAGE, Stage.FIT, timing)
    for epoch in range(1, epochs + 1):
        metrics = EpochMetrics(
            epoch=epoch,
            epochs=9,
            train_loss=1 / epoch,
            train_accuracy=0.5,
            validation_loss=None,
            validation_accuracy=None,
        )
        attempt.report(JobEventType.EPOCH, Stage.FIT, metrics)
    attempt.report(JobEventType.WARNING, Stage.FIT, {}, "Slow.")


async def shown(gateway: TrainingGateway) -> dict[str, Any]:
    """All that a user sees."""
    paths = ["/v1/datasets", "/v1/training-jobs", "/v1/models", "/v1/models/flowers/versions"]
    seen = {path: (await gateway.client.get(path)).json() for path in paths}
    for job in seen["/v1/training-jobs"]["items"]:
        path = f"/v1/training-jobs/{job['id']}/metrics"
        seen[path] = (await gateway.client.get(path)).json()
    return seen


async def promote(gateway: TrainingGateway, alias: str, version: int, **beside: Any) -> None:
    response = await gateway.client.put(f"/v1/models/flowers/aliases/{alias}", json={"version": version, **beside})
    assert response.status_code == 200, response.text


async def history(gateway: TrainingGateway) -> dict[str, str]:
    """A gateway's life: jobs that ended in every way, versions, aliases, deletions. The jobs' ids by what became."""
    ids: dict[str, str] = {}
    for version in (1, 2, 3):
        job = await gateway.job()
        attempt = await gateway.attempt(job["id"])
        train(attempt, version)
        await gateway.job_in(job["id"], "training")
        attempt.publish(version)
        await gateway.job_in(job["id"], "succeeded")
        ids[f"published {version}"] = job["id"]
    ids["failed"] = (await gateway.job())["id"]
    (await gateway.attempt(ids["failed"])).fail(FailureClass.USER, "class_too_small", "Too small.")
    await gateway.job_in(ids["failed"], "failed")
    ids["cancelled"] = (await gateway.job())["id"]
    (await gateway.attempt(ids["cancelled"])).run()
    await gateway.job_in(ids["cancelled"], "preparing")
    await gateway.client.post(f"/v1/training-jobs/{ids['cancelled']}/cancel")
    await gateway.job_in(ids["cancelled"], "cancelled")
    await promote(gateway, "production", 1)
    await promote(gateway, "production", 2)
    await promote(gateway, "canary", 1, split={"version": 2, "weight": 0.1})
    await promote(gateway, "trial", 2, shadow={"version": 1})
    await promote(gateway, "gone", 1)
    await gateway.client.delete("/v1/models/flowers/aliases/gone")
    assert (await gateway.client.delete("/v1/models/flowers/versions/3")).status_code == 204
    upload = await gateway.client.post("/v1/datasets", json={"name": "open", "source": {"type": "upload"}})
    assert upload.status_code == 201
    return ids


async def test_users_find_what_they_had(tmp_path: Path, new_database: NewDatabase, bucket: str) -> None:
    open_store(bucket).put("made", b"")
    async with training_gateway(tmp_path, new_database(), keep_bucket=bucket) as first:
        ids = await history(first)
        before = await shown(first)
    url = new_database()
    result = await restored(url, open_store(bucket))
    assert result.problems == []
    assert result.unfinished_jobs == 0
    counts = {kind: (count.found, count.added) for kind, count in result.counts.items()}
    assert counts == {"datasets": (6, 6), "jobs": (5, 5), "versions": (3, 3), "aliases": (4, 3)}
    async with training_gateway(tmp_path, url, keep_bucket=bucket) as second:
        assert await shown(second) == before
        assert (await second.client.get("/v1/models/flowers/versions/3")).status_code == 404
        events = await second.events(ids["published 2"])
        assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
        assert [event["state"] for event in events][-1] == "succeeded"
        assert [event["data"]["epoch"] for event in events if event["type"] == "epoch"] == [1, 2]
    again = await restored(url, open_store(bucket))
    assert {count.added + count.brought_forward for count in again.counts.values()} == {0}


async def test_an_attempt_that_still_runs_goes_on_unharmed(tmp_path: Path, new_database: NewDatabase) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        job = await first.job()
        attempt = await first.attempt(job["id"])
        train(attempt, 2)
        before = await first.job_in(job["id"], "training")
    url = new_database()
    result = await restored(url, first.store)
    assert result.unfinished_jobs == 1
    async with training_gateway(tmp_path, url, first.ray) as second:
        goes_on = await second.read(job["id"])
        assert goes_on["state"] == "training"
        assert (goes_on["metrics"], goes_on["stages"], goes_on["warnings"]) == (
            before["metrics"],
            before["stages"],
            before["warnings"],
        )
        attempt.publish()
        ended = await second.job_in(job["id"], "succeeded")
    assert ended["attempt"] == 1
    assert len(first.ray.submissions) == 1
    assert (ended["id"], ended["created_at"], ended["spec"]) == (job["id"], job["created_at"], job["spec"])


async def test_batch_predictions_come_back_and_go_on(tmp_path: Path, new_database: NewDatabase) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        await first.publish()
        done = (await first.prediction(source={"type": "dataset", "dataset_id": await first.dataset()}))["id"]
        (await first.attempt(done)).predict({"predictions.jsonl": b"{}\n"})
        await first.job_in(done, "succeeded")
        runs = (await first.prediction())["id"]
        attempt = await first.attempt(runs)
        attempt.run()
        progress = Progress(stage=Stage.PREDICT, done=4, total=9, unit="images")
        attempt.report(JobEventType.PROGRESS, Stage.PREDICT, progress)
        await first.job_in(runs, "predicting")
        before = {job_id: await first.read(job_id) for job_id in (done, runs)}
    url = new_database()
    result = await restored(url, first.store)
    assert (result.problems, result.unfinished_jobs) == ([], 1)
    async with training_gateway(tmp_path, url, first.ray) as second:
        assert await second.read(done) == before[done]
        goes_on = await second.read(runs)
        assert (goes_on["state"], goes_on["progress"]) == ("predicting", before[runs]["progress"])
        assert (await second.client.get(f"/v1/batch-predictions/{done}/results")).content == b"{}\n"
        attempt.predict({})
        assert (await second.job_in(runs, "succeeded"))["attempt"] == 1


async def test_a_job_that_waits_for_a_machine_waits_on(tmp_path: Path, new_database: NewDatabase) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        job = await first.job(resources={"market": "spot"})
        attempt = await first.attempt(job["id"])
        train(attempt, 2)
        wait = CapacityWait(asked="1 CPU on a spot node", since=utc_now(), message="no spot node", on_demand_at=None)
        attempt.report(JobEventType.CAPACITY, Stage.FIT, wait, wait.sentence)
        before = await first.job_in(job["id"], "waiting_for_capacity")
    url = new_database()
    await restored(url, first.store)
    async with training_gateway(tmp_path, url, first.ray) as second:
        assert await eventually(lambda: reason_is(second, job["id"], wait.sentence))
        goes_on = await second.read(job["id"])
        assert (goes_on["state"], goes_on["waiting"]) == (before["state"], before["waiting"])
        attempt.report(JobEventType.CAPACITY, Stage.FIT, wait.model_copy(update={"over": True}))
        assert (await second.job_in(job["id"], "training"))["waiting"] is None


async def reason_is(gateway: TrainingGateway, job_id: str, reason: str) -> bool:
    return (await gateway.read(job_id))["reason"] == reason


async def test_after_the_cluster_was_lost_too_a_greater_attempt_follows(
    tmp_path: Path, new_database: NewDatabase
) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        job_id = (await first.job(max_attempts=5))["id"]
        for number in (1, 2):
            attempt = await first.attempt(job_id, number)
            train(attempt, number)
            attempt.fail(FailureClass.UNKNOWN)
        await first.attempt(job_id, 3)
    # The newest trace of all is a checkpoint, e.g. because the fence's object was lost.
    manifest = f"{names.checkpoints_prefix(JobId(job_id))}a0007-t0000-s0000000001/manifest.json"
    first.store.put(manifest, b"{}")
    url = new_database()
    await restored(url, first.store)
    async with training_gateway(tmp_path, url) as second:
        attempt = await second.attempt(job_id, 8)
        assert [each.submission_id for each in second.ray.submissions] == [f"{job_id}-a8"]
        attempt.publish()
        await second.job_in(job_id, "succeeded")


async def test_an_attempt_of_a_spare_driver_is_found_where_it_runs(tmp_path: Path, new_database: NewDatabase) -> None:
    async with training_gateway(tmp_path, new_database(), spare_driver=True) as first:

        async def waits() -> bool:
            return bool(first.ray.submissions)

        await eventually(waits)
        (waiting,) = first.ray.submissions
        job_id = (await first.job())["id"]

        async def given() -> bool:
            return first.store.head(names.attempt_driver(JobId(job_id), 1)) is not None

        await eventually(given)
    url = new_database()
    await restored(url, first.store)
    async with training_gateway(tmp_path, url) as second:
        second.ray.set(waiting.submission_id, RayStatus.RUNNING)
        job = await second.job_in(job_id, "preparing")
        assert (job["attempt"], job["submission_id"]) == (1, waiting.submission_id)


async def test_a_cancelled_job_does_not_come_back_to_life(tmp_path: Path, new_database: NewDatabase) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        job_id = (await first.job())["id"]
        (await first.attempt(job_id)).run()
        await first.job_in(job_id, "preparing")
        first.ray.reachable = False
        assert (await first.client.post(f"/v1/training-jobs/{job_id}/cancel")).status_code == 202
    url = new_database()
    await restored(url, first.store)
    async with training_gateway(tmp_path, url) as second:  # on a new cluster
        await second.job_in(job_id, "cancelled")
        assert second.ray.submissions == []


async def test_what_cannot_be_read_is_named_and_stops_nothing_else(tmp_path: Path, new_database: NewDatabase) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        ids = await history(first)
        lost = (await first.read(ids["failed"]))["spec"]["dataset_id"]
    keys = [
        names.job_spec(JobId(ids["cancelled"])),
        names.dataset_record(lost),
        names.model_manifest("flowers", 2),
    ]
    for key in keys:
        first.store.put(key, b"{} or so")
    url = new_database()
    result = await restored(url, first.store)
    # Without version 2, which each of them refers to in some role, they would not be what they were.
    lost_aliases = {names.model_alias("flowers", alias) for alias in ("production", "canary", "trial")}
    assert {problem.key for problem in result.problems} == {*keys, *lost_aliases}
    async with training_gateway(tmp_path, url) as second:
        # The job whose dataset cannot be read is there all the same.
        assert (await second.read(ids["failed"]))["failure"]["code"] == "class_too_small"
        versions = (await second.client.get("/v1/models/flowers/versions")).json()["items"]
        assert [each["version"] for each in versions] == [1]


async def test_an_old_copy_of_the_database_is_brought_forward_and_newer_rows_stay(tmp_path: Path) -> None:
    def url(name: str) -> str:
        return f"sqlite+aiosqlite:///{tmp_path / name / 'rekindle.db'}"

    async with training_gateway(tmp_path, url("live")) as first:
        old, new = await first.job(), await first.job()
        train(await first.attempt(old["id"]), 1)
        (await first.attempt(new["id"])).publish(1)
        await first.job_in(new["id"], "succeeded")
        await promote(first, "production", 1)
        await first.job_in(old["id"], "training")
        backup = tmp_path / "backup"
        backup.mkdir()
        with (
            closing(sqlite3.connect(tmp_path / "live" / "rekindle.db")) as live,
            closing(sqlite3.connect(backup / "rekindle.db")) as copy,
        ):
            live.backup(copy)
        (await first.attempt(old["id"])).die()
        (await first.attempt(old["id"], 2)).publish(2)
        await first.job_in(old["id"], "succeeded")
        await promote(first, "production", 2)
        before = await shown(first)
    result = await restored(url("backup"), first.store, beside_gateways=True)
    moved = {kind: (count.brought_forward, count.kept) for kind, count in result.counts.items()}
    assert moved == {"datasets": (0, 2), "jobs": (1, 1), "versions": (0, 1), "aliases": (1, 0)}
    async with training_gateway(tmp_path, url("backup")) as second:
        after = await shown(second)
    assert after["/v1/models"] == before["/v1/models"]
    assert after["/v1/models/flowers/versions"] == before["/v1/models/flowers/versions"]


async def test_a_database_that_knows_less_than_the_bucket_stops_no_job(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url, max_running_jobs=1) as gateway:
        first, second = await gateway.job(), await gateway.job()
        attempt = await gateway.attempt(first["id"])
        fence = Fence(attempt=5).model_dump_json().encode()
        assert gateway.store.put(names.job_fence(JobId(second["id"])), fence, if_absent=True)
        attempt.publish(1)
        (await gateway.attempt(second["id"], 6)).publish(2)
        await gateway.job_in(second["id"], "succeeded")
        assert [each.submission_id for each in gateway.ray.submissions] == [f"{first['id']}-a1", f"{second['id']}-a6"]


async def test_no_restore_into_a_database_that_a_gateway_works_on_unless_told(
    tmp_path: Path, new_database: NewDatabase
) -> None:
    url = new_database()
    async with training_gateway(tmp_path, url) as gateway:
        (await gateway.attempt((await gateway.job())["id"])).run()  # so there is a leader
        with pytest.raises(Conflict, match="a gateway works on this database"):
            await restored(url, gateway.store)
        assert (await restored(url, gateway.store, beside_gateways=True)).counts["jobs"].kept == 1


async def test_without_a_database_it_only_looks(tmp_path: Path, new_database: NewDatabase) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        await first.job()
        seen = await restore(first.store, None, utc_now(), lambda *_: None)
    assert (seen.counts["jobs"].found, seen.counts["jobs"].added, seen.unfinished_jobs) == (1, 0, 1)


async def test_a_slow_gateway_never_puts_back_an_older_alias(tmp_path: Path, empty_sqlite_url: str) -> None:
    """It has read the row and is stopped; others move the alias on; it wakes, and may be killed right after."""
    async with training_gateway(tmp_path, empty_sqlite_url) as gateway:
        for version in (1, 2):
            (await gateway.attempt((await gateway.job())["id"])).publish(version)
        await gateway.job_in((await shown(gateway))["/v1/training-jobs"]["items"][0]["id"], "succeeded")
        await promote(gateway, "production", 1)
        key = names.model_alias("flowers", "production")
        standing = copies.read_alias(gateway.store, key)
        await promote(gateway, "production", 2)
        async with gateway.database.session() as session:
            row = await queries.find_alias(session, "flowers", "production")
        await promote(gateway, "production", 1)
        assert not copies.write_alias(gateway.store, key, "production", row, standing)
        now = copies.read_alias(gateway.store, key)
        assert now is not None
        assert now.record.version == 1


@pytest.mark.parametrize("beside", [{"split": {"version": 2, "weight": 0.1}}, {"shadow": {"version": 2}}])
async def test_an_alias_comes_back_as_it_was_last_and_not_without_its_second_version(
    tmp_path: Path, new_database: NewDatabase, beside: dict[str, Any]
) -> None:
    async with training_gateway(tmp_path, new_database()) as first:
        for version in (1, 2):
            (await first.attempt((await first.job())["id"])).publish(version)
        await eventually_published(first, 2)
        await promote(first, "production", 1)
        await promote(first, "production", 1, **beside)
        store = first.store
        (before,) = (await first.client.get("/v1/models/flowers")).json()["aliases"]
    url = new_database()
    await restored(url, store)
    database = Database(url)
    async with database.transaction() as session:  # as of a backup from before the last change
        row = await queries.find_alias(session, "flowers", "production")
        assert row is not None
        assert queries.to_alias(row).model_dump(mode="json") == before
        queries.point(row, 2, None, None, row.updated_at - timedelta(seconds=1))
    assert (await restored(url, store)).counts["aliases"].brought_forward == 1
    async with database.transaction() as session:
        row = await queries.find_alias(session, "flowers", "production")
        assert row is not None
        assert queries.to_alias(row).model_dump(mode="json") == before
        await session.delete(row)
    store.put(names.model_manifest("flowers", 2), b"{}")
    async with database.transaction() as session:
        await session.execute(delete(ModelVersionRow).where(ModelVersionRow.version == 2))
    await database.close()
    result = await restored(url, store)
    (reason,) = [each.reason for each in result.problems if each.key == names.model_alias("flowers", "production")]
    assert "version 2" in reason


async def eventually_published(gateway: TrainingGateway, count: int) -> None:
    async def published() -> bool:
        versions = (await gateway.client.get("/v1/models/flowers/versions")).json()
        return len(versions.get("items", [])) == count

    await eventually(published)


async def test_the_leader_writes_the_copies_that_a_dead_gateway_owed(tmp_path: Path, empty_sqlite_url: str) -> None:
    async with training_gateway(tmp_path, empty_sqlite_url) as gateway:
        (await gateway.attempt((await gateway.job())["id"])).publish(1)
        await gateway.job_in((await shown(gateway))["/v1/training-jobs"]["items"][0]["id"], "succeeded")
        await promote(gateway, "production", 1)
        key = names.model_alias("flowers", "production")
        gateway.store.delete([key])
        await copies.heal(gateway.app.state.training)
        healed = copies.read_alias(gateway.store, key)
    assert healed is not None
    assert healed.record.version == 1


def test_specs_and_datasets_of_a_newer_release_are_read_and_requests_stay_strict() -> None:
    spec = {
        "dataset_id": "ds_000000000000000000000001",
        "weights": {"uri": "s3://b/w.h5", "licence": "new"},
        "early_stopping": {"patience": 3, "mode": "new"},
        "telepathy": True,
    }
    job = {
        "job_id": "job_000000000000000000000001",
        "kind": "train",
        "model_name": "flowers",
        "created_at": utc_now(),
        "source_uri": "s3://b/x",
        "spec": spec,
    }
    read = JobRecord.model_validate(job).spec
    assert read is not None
    assert (read.early_stopping.patience if read.early_stopping else None) == 3
    with pytest.raises(ValueError, match="Extra inputs are not permitted"):
        TrainingJobSpec.model_validate(spec)
    dataset = {"id": "d", "name": "n", "source": {"type": "upload", "new": 1}, "state": "ready", "layout": None}
    assert Dataset.model_validate({**dataset, "created_at": utc_now(), "x": 1}, extra="ignore").id == "d"


async def test_a_row_with_fields_of_a_newer_release_is_shown(gateway: TrainingGateway) -> None:
    job = await gateway.job()
    async with gateway.database.transaction() as session:
        row = await job_queries.get_row(session, job["id"], lock=True)
        row.spec = {**(row.spec or {}), "telepathy": True}
    assert (await gateway.read(job["id"]))["spec"] == job["spec"]
    (await gateway.attempt(job["id"])).ray.set(f"{job['id']}-a1", RayStatus.RUNNING)
    await gateway.job_in(job["id"], "preparing")
