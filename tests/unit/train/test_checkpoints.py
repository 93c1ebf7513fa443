"""Checkpoints are whole or not there, and a newer attempt wins."""

import threading
from pathlib import Path

import numpy as np
import pytest

from ray_cluster.train import checkpoints
from ray_cluster.train.checkpoints import CheckpointWriter, Snapshot
from services.contracts import names
from services.contracts.errors import Fenced, ObjectStoreUnavailable, RetryLater
from services.contracts.ids import JobId
from services.contracts.jobs import Fence
from services.contracts.models import Fingerprint
from services.runtime.objects import ObjectStore, open_store
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
    commit(store, 9, attempt=1)
    commit(store, 7, attempt=2)
    assert newest_step(store) == 9


def test_two_are_kept(store: ObjectStore) -> None:
    for step in (1, 2, 3, 4):
        commit(store, step)
    folders = store.list_folder(names.checkpoints_prefix(JOB)).folders
    assert folders == ["a0001-s0000000003", "a0001-s0000000004"]


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
    key = f"{names.checkpoint_prefix(JOB, 1, 2)}state.safetensors"
    data = store.get(key)
    match damage:
        case "flip":
            store.put(key, data[:-1] + bytes([data[-1] ^ 1]))
        case "cut":
            store.put(key, data[:-1])
        case "gone":
            store.delete([key])
        case _:
            store.put(names.checkpoint_manifest(JOB, 1, 2), b"{")
    assert newest_step(store) == 1


def test_a_given_up_attempt_commits_nothing(store: ObjectStore) -> None:
    commit(store, 1)
    store.put(names.job_fence(JOB), Fence(attempt=2).model_dump_json().encode())
    with pytest.raises(Fenced):
        commit(store, 2, attempt=1)
    assert newest_step(store) == 1
    commit(store, 2, attempt=2)
    assert newest_step(store) == 2


def test_garbage_of_lost_attempts_goes_and_that_of_newer_ones_stays(store: ObjectStore) -> None:
    orphan_of_old = f"{names.checkpoint_prefix(JOB, 1, 8)}state.safetensors"
    unfinished_of_newer = f"{names.checkpoint_prefix(JOB, 3, 9)}state.safetensors"
    store.put(orphan_of_old, b"old")
    store.put(unfinished_of_newer, b"new")
    store.put(names.job_fence(JOB), Fence(attempt=2).model_dump_json().encode())
    commit(store, 10, attempt=2)
    assert store.head(orphan_of_old) is None
    assert store.head(unfinished_of_newer) is not None


# --- the writer ---


def fail_on_fault(error: RetryLater) -> None:
    raise AssertionError(error)


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


def test_a_store_fault_is_told_and_the_next_checkpoint_is_written() -> None:
    faults: list[str] = []
    told, written = threading.Event(), []

    def write(taken: Snapshot) -> None:
        if taken.step == 1:
            raise ObjectStoreUnavailable("down")
        written.append(taken.step)

    def on_fault(error: RetryLater) -> None:
        faults.append(str(error))
        told.set()

    writer = CheckpointWriter(write, on_fault)
    writer.offer(snapshot(1))
    assert told.wait(10)
    writer.close(snapshot(2))
    assert (faults, written) == (["down"], [2])


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
