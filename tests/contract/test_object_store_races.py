"""What every object store promises while others write, and when writers are killed."""

import multiprocessing
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from services.runtime.objects import ObjectStore
from tests.contract import store_writers
from tests.contract.store_writers import WAIT_S

THREADS = 16
PROCESSES = 4
ROUNDS = 10
WRITES_IN_FLIGHT = 1
"""Of a writer that was killed: it sends one after the other."""

spawn = multiprocessing.get_context("spawn")


def test_threads_race_and_one_creates(store: ObjectStore) -> None:
    start = threading.Barrier(THREADS)

    def create(number: int, thread: int) -> bool:
        start.wait(WAIT_S)
        return store.put(f"race/{number}", str(thread).encode(), if_absent=True) is not None

    with ThreadPoolExecutor(THREADS) as pool:
        for number in range(ROUNDS):
            won = list(pool.map(create, [number] * THREADS, range(THREADS)))
            assert won.count(True) == 1
            assert store.get(f"race/{number}") == str(won.index(True)).encode()


def test_threads_race_and_one_replaces(store: ObjectStore) -> None:
    start = threading.Barrier(THREADS)
    store.put("a", b"start")

    def replace(etag: str, thread: int) -> bool:
        start.wait(WAIT_S)
        return store.put("a", str(thread).encode(), if_match=etag) is not None

    with ThreadPoolExecutor(THREADS) as pool:
        for number in range(ROUNDS):
            written = store.put("a", f"round {number}".encode())
            assert written is not None
            won = list(pool.map(replace, [written.etag] * THREADS, range(THREADS)))
            assert won.count(True) == 1
            assert store.get("a") == str(won.index(True)).encode()


def test_processes_race_and_one_creates(store: ObjectStore) -> None:
    start, won = spawn.Barrier(PROCESSES), spawn.SimpleQueue()
    processes = [
        spawn.Process(target=store_writers.race_to_create, args=(store.uri, ROUNDS, start, won))
        for _ in range(PROCESSES)
    ]
    run_to_end(processes)

    results = []
    while not won.empty():
        results.append(won.get())
    assert Counter(number for number, _ in results) == dict.fromkeys(range(ROUNDS), 1)
    for number, pid in results:
        assert store.get(f"race/{number}") == str(pid).encode()


def test_processes_count_and_no_count_is_lost(store: ObjectStore) -> None:
    start, times = spawn.Barrier(PROCESSES), 15
    store.put("counter", b"0")

    run_to_end([spawn.Process(target=store_writers.count_up, args=(store.uri, times, start)) for _ in range(PROCESSES)])

    assert store.get("counter") == str(PROCESSES * times).encode()


@pytest.mark.parametrize("size_bytes", [1, 9_000_000, 30_000_000])
def test_a_writer_killed_in_a_stream_leaves_nothing(store: ObjectStore, size_bytes: int) -> None:
    store.put("other", b"1")
    stalled, never = spawn.Event(), spawn.Event()
    writer = spawn.Process(target=store_writers.stall_in_stream, args=(store.uri, size_bytes, stalled, never))
    writer.start()
    try:
        assert stalled.wait(WAIT_S)
        assert store.head("big") is None
    finally:
        writer.kill()
        writer.join(WAIT_S)

    assert store.head("big") is None
    assert [info.key for info in store.list("")] == ["other"]
    assert store.put("big", b"whole", if_absent=True) is not None


@pytest.mark.parametrize("delay_s", [0.0, 0.013, 0.05, 0.11])
def test_a_writer_killed_at_any_time_leaves_a_whole_object(store: ObjectStore, delay_s: float) -> None:
    size_bytes, started = 24_000_000, spawn.Event()
    writer = spawn.Process(target=store_writers.write_in_turn, args=(store.uri, size_bytes, started))
    writer.start()
    try:
        assert started.wait(WAIT_S)
        time.sleep(delay_s)  # the kill comes at an arbitrary point of the writing
    finally:
        writer.kill()
        writer.join(WAIT_S)

    assert store.get("big") in {b"a" * size_bytes, b"b" * size_bytes}
    # The dead writer holds no lock. A server may still be storing what it had sent, which then wins once.
    assert any(replace(store, "big", b"next") for _ in range(WRITES_IN_FLIGHT + 1))


def replace(store: ObjectStore, key: str, data: bytes) -> bool:
    """Whether the object was replaced; not when another writer was quicker."""
    head = store.head(key)
    assert head is not None
    return store.put(key, data, if_match=head.etag) is not None


def run_to_end(processes: list[multiprocessing.process.BaseProcess]) -> None:
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join(WAIT_S)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
