"""Which files a batch prediction labels: all, each in one shard, and the same ones whatever happens to the source."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ray_cluster.predict import snapshot as snapshots
from ray_cluster.predict.snapshot import PAGE_FILES, SHARD_FILES
from services.contracts.base import utc_now
from services.contracts.errors import SourceEmpty
from services.contracts.ids import JobId
from services.runtime.objects import ObjectInfo, ObjectStore, open_store

JOB = JobId("pred_" + "0" * 24)
SOURCE = "s3://pets/new"


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store((tmp_path / "bucket").as_uri())


def infos(*paths: str) -> list[ObjectInfo]:
    return [ObjectInfo(path, 7, "etag", utc_now()) for path in paths]


def numbered(count: int) -> list[str]:
    return [f"{number:06d}.jpg" for number in range(count)]


@pytest.mark.parametrize("count", [1, SHARD_FILES, SHARD_FILES + 1, PAGE_FILES, PAGE_FILES + SHARD_FILES + 3])
def test_every_file_is_in_one_shard_in_order(store: ObjectStore, count: int) -> None:
    taken = snapshots.take(store, JOB, 1, SOURCE, infos(*numbered(count)))
    shards = list(snapshots.read_shards(store, JOB, taken))
    assert [file.key for shard in shards for file in shard.files] == numbered(count)
    assert [shard.number for shard in shards] == list(range(taken.shard_count))
    assert [len(shard.files) for shard in shards] == [taken.shard_size(number) for number in range(taken.shard_count)]
    assert {file.size_bytes for shard in shards for file in shard.files} == {7}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(count=st.integers(1, 5000), shard_files=st.integers(1, 600))
def test_the_sizes_of_the_shards_add_up(count: int, shard_files: int) -> None:
    taken = snapshots.Snapshot(attempt=1, page_count=1, file_count=count, ignored_count=0, shard_files=shard_files)
    sizes = [taken.shard_size(number) for number in range(taken.shard_count)]
    assert sum(sizes) == count
    assert all(0 < size <= shard_files for size in sizes)


def test_the_first_snapshot_counts_whatever_the_source_became(store: ObjectStore) -> None:
    first = snapshots.take(store, JOB, 1, SOURCE, infos("a.jpg", "b.jpg"))
    second = snapshots.take(store, JOB, 2, SOURCE, infos("b.jpg", "c.jpg", "d.jpg"))
    assert second == first == snapshots.find(store, JOB)
    (shard,) = snapshots.read_shards(store, JOB, second)
    assert [file.key for file in shard.files] == ["a.jpg", "b.jpg"]


def test_an_attempt_that_died_while_it_listed_leaves_nothing_that_counts(store: ObjectStore) -> None:
    def dies() -> object:
        yield from infos(*numbered(PAGE_FILES + 1))
        raise ConnectionError

    with pytest.raises(ConnectionError):
        snapshots.take(store, JOB, 1, SOURCE, dies())
    assert snapshots.find(store, JOB) is None
    taken = snapshots.take(store, JOB, 2, SOURCE, infos("only.jpg"))
    assert [file.key for shard in snapshots.read_shards(store, JOB, taken) for file in shard.files] == ["only.jpg"]


def test_hidden_files_and_folder_markers_are_left_out_and_counted(store: ObjectStore) -> None:
    listed = infos(".git/a", ".git/b", "__MACOSX/x.jpg", "a/", "a/.hidden.jpg", "a/1.jpg", "notes.txt")
    taken = snapshots.take(store, JOB, 1, SOURCE, listed)
    assert [file.key for shard in snapshots.read_shards(store, JOB, taken) for file in shard.files] == [
        "a/1.jpg",
        "notes.txt",
    ]
    assert taken.ignored_count == 3


@pytest.mark.parametrize(("paths", "said"), [((), "there are no files"), ((".hidden", "a/"), "only 1 hidden")])
def test_an_empty_source_is_refused_and_named(store: ObjectStore, paths: tuple[str, ...], said: str) -> None:
    with pytest.raises(SourceEmpty, match=said) as refused:
        snapshots.take(store, JOB, 1, SOURCE, infos(*paths))
    assert SOURCE in refused.value.message
    assert snapshots.find(store, JOB) is None
