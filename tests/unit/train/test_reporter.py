"""Progress records: in order, without gaps, not too many, and never the reason that an attempt fails."""

from pathlib import Path

import pytest

from ray_cluster.train.reporter import FENCE_INTERVAL_S, Reporter
from services.contracts import names
from services.contracts.ids import JobId
from services.contracts.jobs import EpochMetrics, Fence, JobEventType, Progress, ProgressRecord, Stage
from services.runtime.objects import ObjectStore, open_store
from tests.unit.train.stores import FaultyStore

JOB = JobId("job_1")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


def records(store: ObjectStore) -> list[ProgressRecord]:
    prefix = names.attempt_progress_prefix(JOB, 1)
    return [ProgressRecord.model_validate_json(store.get(info.key)) for info in store.list(prefix)]


def epoch(number: int) -> EpochMetrics:
    return EpochMetrics(
        epoch=number, epochs=100, train_loss=1, train_accuracy=0, validation_loss=None, validation_accuracy=None
    )


def test_two_writers_after_each_other_leave_no_gap(store: ObjectStore) -> None:
    driver = Reporter(store, JOB, 1)
    driver.warning(Stage.PREFLIGHT, "a", "first")
    Reporter(store, JOB, 1).warning(Stage.FIT, "b", "second")
    driver.warning(Stage.PUBLISH, "c", "third")
    assert [(record.seq, record.message) for record in records(store)] == [(0, "first"), (1, "second"), (2, "third")]


def test_progress_is_throttled_and_the_last_of_it_is_not(store: ObjectStore) -> None:
    clock = Clock()
    reporter = Reporter(store, JOB, 1, clock)
    for done in range(101):
        reporter.progress(Stage.FEATURES, done, 100, "images")
        clock.now += 0.125  # exact in binary
    found = [Progress.model_validate(record.data).done for record in records(store)]
    assert found[0] == 0
    assert found[-1] == 100
    assert len(found) == 26


def test_the_last_epoch_is_always_reported(store: ObjectStore) -> None:
    reporter = Reporter(store, JOB, 1, Clock())
    for number in (1, 2, 3):
        reporter.epoch(epoch(number), last=number == 3)
    found = records(store)
    assert [record.type for record in found] == [JobEventType.EPOCH] * 2
    assert [EpochMetrics.model_validate(record.data).epoch for record in found] == [1, 3]


def test_a_store_that_fails_loses_records_and_nothing_else(store: ObjectStore) -> None:
    faulty = FaultyStore(store, fails=lambda key: True)
    reporter = Reporter(faulty, JOB, 1)
    reporter.warning(Stage.FIT, "a", "lost")
    faulty.fails = lambda key: False
    reporter.warning(Stage.FIT, "b", "kept")
    assert [(record.seq, record.message) for record in records(store)] == [(0, "kept")]


def test_a_trainer_that_was_given_up_tells_nothing_more(store: ObjectStore) -> None:
    clock = Clock()
    said: list[str] = []
    store.put(names.job_fence(JOB), Fence(attempt=1, term=2).model_dump_json().encode())
    zombie = Reporter(store, JOB, 1, clock, term=2, say=said.append)
    zombie.epoch(epoch(1), last=False)
    store.put(names.job_fence(JOB), Fence(attempt=1, term=3).model_dump_json().encode())
    clock.now += FENCE_INTERVAL_S
    zombie.epoch(epoch(2), last=False)
    clock.now += FENCE_INTERVAL_S
    zombie.warning(Stage.FIT, "late", "late")
    Reporter(store, JOB, 1, clock, term=3, say=said.append).epoch(epoch(1), last=False)
    assert [record.data["epoch"] for record in records(store)] == [1, 1]
    assert len(said) == 2


def test_the_jobs_log_has_what_the_bucket_could_not_take(store: ObjectStore) -> None:
    said: list[str] = []
    Reporter(FaultyStore(store, fails=lambda key: True), JOB, 1, say=said.append).warning(Stage.FIT, "a", "lost")
    assert said == ["lost"]
