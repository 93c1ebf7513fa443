"""I8 on every store: all garbage goes, and nothing else does."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from services.contracts import names
from services.contracts.aliases import AliasShadow, AliasSplit
from services.contracts.base import utc_now
from services.contracts.ids import DatasetId, TrunkId
from services.runtime.objects import ObjectStore
from services.training.garbage.operations import Collected, collect
from services.training.garbage.policy import Known, Rules
from tests.servers.garbage_bucket import DATASET, GarbageBucket, job_id, whole_shard
from tests.servers.training import make_manifest

GRACE = timedelta(days=1)
TOMORROW = timedelta(days=1, hours=1)
RECENTLY = timedelta(hours=1)
NOTHING = Known()


@pytest.fixture
def bucket(store: ObjectStore) -> GarbageBucket:
    """Everything is written now and collected two days later."""
    return GarbageBucket(store, utc_now() + timedelta(days=2))


async def collected(
    bucket: GarbageBucket, *, known: Known = NOTHING, features_kept: timedelta | None = None, dry_run: bool = False
) -> Collected:
    return await collect(bucket.store, known, Rules(bucket.now, GRACE, features_kept), dry_run=dry_run)


async def test_all_garbage_goes_and_nothing_else(bucket: GarbageBucket) -> None:
    """A bucket with one of each kind."""
    bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    bucket.claim(bucket.job(2), 2, dead=True)
    deleted = bucket.version(bucket.job(3, published=("flowers", 3)), 3)
    bucket.delete(deleted)
    fresh = bucket.version(bucket.job(4, published=("flowers", 4)), 4)
    bucket.delete(fresh, RECENTLY, garbage=False)
    bucket.claim(bucket.job(5, ended=None), 5, dead=False)
    bucket.version(bucket.job(6, ended=None), 6, dead=False)
    bucket.claim(bucket.job(7, ended=RECENTLY, garbage=False), 7, dead=False)
    bucket.put(names.dataset_record(DATASET), b"{}", garbage=False)
    bucket.put(f"{names.dataset_files(DATASET)}daisy/1.jpg", b"image", garbage=False)
    orphan = DatasetId("ds_" + "2" * 24)
    bucket.put(f"{names.dataset_files(orphan)}daisy/1.jpg", b"image", garbage=True)
    bucket.put(names.dataset_manifest(orphan, "f" * 64), b"{}", garbage=False)
    bucket.put(names.store_check("left"), b"1", garbage=True)
    bucket.put("something/else", b"1", garbage=False)
    expected = bucket.listed()
    assert expected == bucket.kept | bucket.garbage

    looked = await collected(bucket, dry_run=True)
    assert bucket.listed() == expected

    done = await collected(bucket)
    assert bucket.listed() == bucket.kept
    assert done == looked
    assert done.objects == len(bucket.garbage)
    assert done.in_doubt == []
    assert (await collected(bucket)).removed == []


async def test_what_is_young_stays(bucket: GarbageBucket) -> None:
    bucket.claim(bucket.job(1), 1, dead=True)
    bucket.put(names.store_check("left"), b"1", garbage=True)
    bucket.now -= TOMORROW
    before = bucket.listed()
    assert (await collected(bucket)).removed == []
    assert bucket.listed() == before


def _no_version(bucket: GarbageBucket) -> None:
    bucket.store.delete([names.model_manifest("flowers", 1)])
    bucket.kept.discard(names.model_manifest("flowers", 1))


DAMAGES: dict[str, Callable[[GarbageBucket], None]] = {
    "a version's manifest": lambda bucket: bucket.damage(names.model_manifest("flowers", 1)),
    "a claim": lambda bucket: bucket.damage(names.model_claim("flowers", 1)),
    "an alias": lambda bucket: bucket.damage(names.model_alias("flowers", "production")),
    "a deletion": lambda bucket: bucket.damage(names.model_deletion("flowers", 2)),
    "a manifest that is gone": _no_version,
}


@pytest.mark.parametrize("damage", DAMAGES)
async def test_nothing_goes_under_a_name_with_something_damaged(bucket: GarbageBucket, damage: str) -> None:
    bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    bucket.delete(bucket.version(bucket.job(2, published=("flowers", 2)), 2))
    bucket.alias("production", 1)
    other = bucket.version(bucket.job(3, published=("others", 1), model_name="others"), 1, "others")
    DAMAGES[damage](bucket)
    bucket.keep("models/flowers/", f"jobs/{job_id(1)}/", f"jobs/{job_id(2)}/")

    done = await collected(bucket)
    assert bucket.listed() >= bucket.kept
    assert [each.key for each in done.in_doubt if each.key.startswith("models/flowers/")]
    # The other model's leftovers go, but nothing that a manifest which cannot be read might refer to.
    assert not bucket.listed() & {key for key in bucket.garbage if key.startswith(f"jobs/{job_id(3)}/checkpoints")}
    assert bucket.store.head(other.tail.key) is not None


async def test_a_deleted_version_of_another_model_waits_until_every_manifest_can_be_read(bucket: GarbageBucket) -> None:
    bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    deleted = bucket.version(bucket.job(2, published=("others", 1), model_name="others"), 1, "others")
    bucket.delete(deleted)
    manifest = bucket.store.get(names.model_manifest("flowers", 1))
    bucket.damage(names.model_manifest("flowers", 1))
    await collected(bucket)
    assert bucket.store.head(deleted.tail.key) is not None
    bucket.store.put(names.model_manifest("flowers", 1), manifest)
    await collected(bucket)
    assert bucket.listed() == bucket.kept


@pytest.mark.parametrize("name", ["spec", "outcome"])
async def test_nothing_of_a_job_with_a_damaged_record_goes(bucket: GarbageBucket, name: str) -> None:
    job = bucket.job(1)
    bucket.claim(job, 1, dead=True)
    bucket.damage(names.job_spec(job) if name == "spec" else names.job_outcome(job))
    before = bucket.listed()
    done = await collected(bucket)
    assert bucket.listed() == before
    assert [each.key for each in done.in_doubt] == [f"jobs/{job}/{name}.json"]


async def test_what_only_the_database_refers_to_stays(bucket: GarbageBucket) -> None:
    """A job that has ended in the bucket and not in the database, which is an old one."""
    job, orphan = bucket.job(1), DatasetId("ds_" + "2" * 24)
    bucket.claim(job, 1, dead=True)
    bucket.put(f"{names.dataset_files(orphan)}daisy/1.jpg", b"image", garbage=True)
    before = bucket.listed()
    known = Known(unfinished_jobs=frozenset({job}), datasets=frozenset({orphan}))
    assert (await collected(bucket, known=known)).removed == []
    assert bucket.listed() == before
    await collected(bucket)
    assert bucket.listed() == bucket.kept


@pytest.mark.parametrize(
    "target",
    [
        {"version": 1},
        {"version": 9, "split": AliasSplit(version=1, weight=0.5)},
        {"version": 9, "shadow": AliasShadow(version=1)},
    ],
)
async def test_a_deleted_version_that_an_alias_is_left_on_stays(bucket: GarbageBucket, target: dict[str, Any]) -> None:
    manifest = bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    bucket.delete(manifest, garbage=False)
    bucket.alias("production", **target)
    await collected(bucket)
    assert bucket.listed() == bucket.kept


async def test_a_version_refers_to_anothers_objects(bucket: GarbageBucket) -> None:
    manifest = bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    bucket.delete(manifest)
    same = manifest.model_copy(update={"version": 2, "job_id": bucket.job(2, published=("flowers", 2))})
    bucket.put(names.model_manifest("flowers", 2), same.model_dump_json().encode(), garbage=False)
    # Exports stay as long as what they were made of.
    bucket.keep(manifest.tail.key, names.job_report(job_id(1), 2), names.model_exports("flowers", 1))
    await collected(bucket)
    assert bucket.listed() == bucket.kept


# --- features ---


def with_features(bucket: GarbageBucket, *, running: bool) -> None:
    trunk = make_manifest(1).trunk  # `a`: of the shape that the jobs use
    bucket.put(names.trunk_manifest(trunk.trunk_id), trunk.model_dump_json().encode(), garbage=False)
    bucket.version(bucket.job(1, published=("flowers", 1)), 1)
    if running:
        bucket.job(2, ended=None)
    bucket.features("a", 1, whole_shard(), garbage=False)
    bucket.features("a", 2, whole_shard()[:-1], garbage=not running)
    bucket.features("a", 3, b"", garbage=not running)
    bucket.features("a", 4, b"\xff" * 5000, garbage=not running)
    other = trunk.model_copy(update={"trunk_id": TrunkId("b" * 64), "image_size": 32})
    bucket.put(names.trunk_manifest(other.trunk_id), other.model_dump_json().encode(), garbage=False)


@pytest.mark.parametrize("running", [False, True])
async def test_broken_features_go_unless_a_job_may_be_at_them(bucket: GarbageBucket, running: bool) -> None:
    with_features(bucket, running=running)
    bucket.features("b", 1, whole_shard(), garbage=False)
    await collected(bucket)
    assert bucket.listed() == bucket.kept


@pytest.mark.parametrize(("kept_days", "goes"), [(None, False), (1, True), (3, False)])
async def test_features_of_no_use_go_where_that_is_asked_for(
    bucket: GarbageBucket, kept_days: int | None, goes: bool
) -> None:
    with_features(bucket, running=True)
    bucket.features("b", 1, whole_shard(), garbage=goes)
    await collected(bucket, features_kept=None if kept_days is None else timedelta(days=kept_days))
    assert bucket.listed() == bucket.kept
