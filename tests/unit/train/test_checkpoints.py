"""Checkpoints are whole or not there, and a newer attempt wins."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.train import checkpoints
from ray_cluster.train.checkpoints import CheckpointWriter, Snapshot, WriterFault
from services.contracts import names
from services.contracts.errors import Fenced, ObjectStoreUnavailable
from services.contracts.ids import JobId
from services.contracts.jobs import Fence
from services.contracts.models import Fingerprint
from services.runtime.objects import ObjectStore, open_store
from services.runtime.objects.retry import RetryPolicy
from tests.unit.train.stores import FaultyStore

JOB = JobId("job_1")
FINGERPRINT = Fingerprint(device="cpu", trunk_engine="litert-1", tensorflow="2", keras="3", threads=1)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    found = open_store(tmp_path.as_uri())
    found.put(names.job_fence(JOB), Fence(attempt=1).model_dump_json().encode())
    return found


def snapshot(step: int) -> Snapshot:
    return Snapshot(step, step, {"w": np.full(4, step, np.float64)}, {"phase": "select", "step": step})


def commit(store: ObjectStore, step: int, attempt: int = 1) -> None:
    checkpoints.commit(store, JOB, attempt, snapshot(step), FINGERPRINT)


def state_key(store: ObjectStore, step: int, attempt: int = 1) -> str:
    (key,) = [
        info.key
        for info in store.list(names.checkpoint_prefix(JOB, attempt, 0, step))
        if info.key.endswith(".safetensors")
    ]
    return key


def newest_step(store: ObjectStore) -> int | None:
    found = checkpoints.load_newest(store, JOB)
    if found is None:
        return None
    assert np.array_equal(found.tensors["w"], np.full(4, found.manifest.step))
    assert found.manifest.position["step"] == found.manifest.step
    return found.manifest.step


def test_a_job_without_checkpoints_has_none(store: ObjectStore) -> None:
    assert newest_step(store) is None


def test_the_newest_is_of_the_greatest_step_whoever_wrote_it(store: ObjectStore) -> None:
    commit(store, 5, attempt=1)
    commit(store, 7, attempt=2)
    commit(store, 9, attempt=1)  # late, and good for all that
    assert newest_step(store) == 9
    commit(store, 8, attempt=2)  # who goes on decides
    assert newest_step(store) == 8


def test_the_manifest_is_written_last(store: ObjectStore) -> None:
    written: list[str] = []

    def note(key: str) -> bool:
        written.append(key)
        return False

    commit(FaultyStore(store, note), 1)
    *objects, manifest = written
    assert manifest == names.checkpoint_manifest(JOB, 1, 0, 1)
    assert objects == [state_key(store, 1)]


def test_two_are_kept(store: ObjectStore) -> None:
    for step in (1, 2, 3, 4):
        commit(store, step)
    folders = store.list_folder(names.checkpoints_prefix(JOB)).folders
    assert folders == ["a0001-t0000-s0000000003", "a0001-t0000-s0000000004"]


def test_an_object_without_a_manifest_is_no_checkpoint(store: ObjectStore) -> None:
    commit(store, 1)
    faulty = FaultyStore(store, fails=lambda key: key.endswith("manifest.json"))
    with pytest.raises(ObjectStoreUnavailable):
        commit(faulty, 2)
    assert newest_step(store) == 1
    commit(store, 2)  # the same attempt does it again
    assert newest_step(store) == 2


@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(store: ObjectStore, damage: str) -> None:
    commit(store, 1)
    commit(store, 2)
    key = state_key(store, 2)
    data = store.get(key)
    match damage:
        case "flip":
            store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            store.put(key, data[:-1])
        case "gone":
            store.delete([key])
        case _:
            store.put(names.checkpoint_manifest(JOB, 1, 0, 2), b"{")
    assert newest_step(store) == 1
    commit(store, 2)  # the damaged one is not in the way
    assert newest_step(store) == 2


def test_another_state_at_the_same_step_takes_the_place_of_the_first(store: ObjectStore) -> None:
    commit(store, 1)
    with_more = replace(snapshot(1), tensors={**snapshot(1).tensors, "tail": np.ones(2)})
    checkpoints.commit(store, JOB, 1, with_more, FINGERPRINT)
    found = checkpoints.load_newest(store, JOB)
    assert found is not None
    assert set(found.tensors) == {"w", "tail"}


def test_what_could_not_be_used_does_not_push_out_what_follows(store: ObjectStore) -> None:
    for step in (5, 6):
        commit(store, step)
        store.put(state_key(store, step), b"damaged")
    store.put(names.job_fence(JOB), Fence(attempt=2).model_dump_json().encode())
    commit(store, 1, attempt=2)
    assert newest_step(store) == 1


def test_what_was_passed_over_is_not_kept_to_fall_back_to(store: ObjectStore) -> None:
    for step in (1, 2):
        commit(store, step)
    store.put(state_key(store, 2), b"damaged")
    assert checkpoints.load_newest(store, JOB, discard_damaged=True)
    commit(store, 3)
    store.put(state_key(store, 3), b"damaged")
    assert newest_step(store) == 1


def test_a_late_one_of_an_earlier_attempt_removes_nothing_of_the_newer(store: ObjectStore) -> None:
    commit(store, 3, attempt=2)
    checkpoints.collect_garbage(store, JOB, 1, 0, 9)
    checkpoints.collect_garbage(store, JOB, 1, 0, 1)
    assert newest_step(store) == 3


def test_a_given_up_attempt_commits_nothing(store: ObjectStore) -> None:
    commit(store, 1)
    store.put(names.job_fence(JOB), Fence(attempt=2).model_dump_json().encode())
    with pytest.raises(Fenced):
        commit(store, 2, attempt=1)
    assert newest_step(store) == 1
    commit(store, 2, attempt=2)
    assert newest_step(store) == 2


def test_garbage_of_lost_attempts_goes_and_that_of_newer_ones_stays(store: ObjectStore) -> None:
    orphan_of_old = f"{names.checkpoint_prefix(JOB, 1, 0, 8)}state.safetensors"
    unfinished_of_newer = f"{names.checkpoint_prefix(JOB, 3, 0, 9)}state.safetensors"
    store.put(orphan_of_old, b"old")
    store.put(unfinished_of_newer, b"new")
    store.put(names.job_fence(JOB), Fence(attempt=2).model_dump_json().encode())
    commit(store, 10, attempt=2)
    assert store.head(orphan_of_old) is None
    assert store.head(unfinished_of_newer) is not None


# --- the writer ---


AT_ONCE = RetryPolicy(base_delay_s=0.0, max_delay_s=0.0)


def fail_on_fault(fault: WriterFault) -> None:
    raise AssertionError(fault)


def test_the_writer_does_not_hold_up_the_training_and_writes_the_last_one() -> None:
    written: list[int] = []
    gate, started = threading.Event(), threading.Event()

    def write(taken: Snapshot) -> None:
        started.set()
        assert gate.wait(10)
        written.append(taken.step)

    writer = CheckpointWriter(write, fail_on_fault)
    writer.offer(snapshot(1))
    assert started.wait(10)
    writer.offer(snapshot(2))  # waits
    writer.offer(snapshot(3))  # takes its place
    gate.set()
    writer.close(snapshot(4))
    assert written[0] == 1
    assert written[-1] == 4
    assert 2 not in written


def test_a_store_that_fails_is_tried_until_it_answers() -> None:
    faults: list[WriterFault] = []
    tries = 0

    def write(taken: Snapshot) -> None:
        nonlocal tries
        tries += 1
        if tries <= 9:
            raise ObjectStoreUnavailable("down")

    writer = CheckpointWriter(write, faults.append, AT_ONCE)
    assert writer.save_now(snapshot(1), None)
    writer.close(None)
    # Told at the first, second, fourth and eighth failure, and that it is over.
    assert [fault.over for fault in faults] == [False] * 4 + [True]
    assert str(faults[0].error) == "down"


def test_the_newest_snapshot_is_written_once_the_store_answers() -> None:
    failing, recovered, written = threading.Event(), threading.Event(), list[int]()

    def write(taken: Snapshot) -> None:
        if taken.step == 1 and not recovered.is_set():  # the store is down until a newer one is tried
            failing.set()
            raise ObjectStoreUnavailable("down")
        recovered.set()
        written.append(taken.step)

    writer = CheckpointWriter(write, lambda _: None, AT_ONCE)
    writer.offer(snapshot(1))
    assert failing.wait(10)
    writer.offer(snapshot(2))
    writer.close(snapshot(3))
    assert written[-1] == 3
    assert 1 not in written


def test_a_save_that_takes_too_long_is_not_waited_for() -> None:
    def write(taken: Snapshot) -> None:
        raise ObjectStoreUnavailable("down")

    writer = CheckpointWriter(write, lambda _: None, AT_ONCE)
    assert not writer.save_now(snapshot(1), 0.05)
    writer.close(None)


def test_being_fenced_stops_the_training() -> None:
    writing = threading.Event()

    def write(taken: Snapshot) -> None:
        writing.set()
        raise Fenced("given up")

    writer = CheckpointWriter(write, fail_on_fault)
    writer.offer(snapshot(1))
    assert writing.wait(10)
    with pytest.raises(Fenced):
        writer.close(None)
