"""Reading ahead: in order, several at a time, and never too much."""

import threading
from pathlib import Path

import pytest

from ray_cluster.train.read_ahead import MAX_AHEAD_BYTES, READERS, Wanted, read_ahead
from services.contracts.errors import NotFound
from services.runtime.objects import ObjectStore, open_store


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


def test_objects_come_in_order_and_a_missing_one_is_its_own_error(store: ObjectStore) -> None:
    for number in range(30):
        if number != 7:
            store.put(f"{number}", str(number).encode())
    files = list(read_ahead(store.get, [Wanted(str(number), 2) for number in range(30)]))
    assert [file.result() for number, file in enumerate(files) if number != 7] == [
        str(number).encode() for number in range(30) if number != 7
    ]
    with pytest.raises(NotFound):
        files[7].result()


def test_as_many_are_read_at_a_time_as_there_are_readers() -> None:
    all_there = threading.Barrier(READERS)

    def read(key: str) -> bytes:
        all_there.wait(timeout=20)
        return key.encode()

    files = read_ahead(read, [Wanted(str(number), 1) for number in range(READERS)])
    assert [file.result() for file in files] == [str(number).encode() for number in range(READERS)]


@pytest.mark.parametrize(
    ("size_bytes", "ahead"), [(1, READERS), (MAX_AHEAD_BYTES // 2, 2), (MAX_AHEAD_BYTES // 2 + 1, 1), (2**40, 1)]
)
def test_large_objects_are_not_piled_up(size_bytes: int, ahead: int) -> None:
    asked: list[str] = []

    def read(key: str) -> bytes:
        asked.append(key)
        return b""

    files = read_ahead(read, [Wanted(str(number), size_bytes) for number in range(20)])
    next(files)
    del files  # which waits for the reads under way
    assert asked == [str(number) for number in range(ahead)]


def test_nothing_wanted_nothing_read(store: ObjectStore) -> None:
    assert list(read_ahead(store.get, [])) == []
