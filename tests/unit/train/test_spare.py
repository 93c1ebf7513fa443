"""How a spare driver waits, without a cluster."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ray_cluster.train import spare
from ray_cluster.train.gathering import Gathering
from ray_cluster.train.spare import Wait
from services.contracts import names
from services.contracts.errors import NotFound, ObjectStoreUnavailable
from services.contracts.ids import JobId
from services.contracts.spare import GivenAttempt, SpareDriver
from services.runtime.objects import ObjectStore, StoredObject, open_store

GIVEN = GivenAttempt(job_id=JobId("job_1"), attempt=2)


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "LOOK_S", 0.001)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(tmp_path.as_uri())


def put(store: ObjectStore, newest: SpareDriver) -> None:
    store.put(names.spare_driver(), newest.model_dump_json().encode())


def read(store: ObjectStore) -> SpareDriver:
    return SpareDriver.model_validate_json(store.get(names.spare_driver()))


def then(*steps: Callable[[], None]) -> Callable[[], None]:
    """What happens between its looks, one step after the other; there is no look after the last."""
    left = iter(steps)

    def step() -> None:
        next(left)()

    return step


def test_it_waits_until_it_is_given_an_attempt(store: ObjectStore) -> None:
    put(store, SpareDriver(submission_id="spare_1"))
    wait = Wait(store, "spare_1")
    assert wait.goes_on
    steps = then(lambda: None, lambda: put(store, SpareDriver(submission_id="spare_1", given=GIVEN)))
    assert wait.until_given(steps) == GIVEN
    assert not wait.goes_on


def test_it_ends_where_another_is_the_newest(store: ObjectStore) -> None:
    put(store, SpareDriver(submission_id="spare_1"))
    steps = then(lambda: put(store, SpareDriver(submission_id="spare_2", given=GIVEN)))
    assert Wait(store, "spare_1").until_given(steps) is None


def test_it_says_that_it_is_ready_unless_it_has_something_to_do(store: ObjectStore) -> None:
    put(store, SpareDriver(submission_id="spare_1"))
    Wait(store, "spare_1").tell_ready()
    assert read(store) == SpareDriver(submission_id="spare_1", ready=True)
    for other in (SpareDriver(submission_id="spare_1", given=GIVEN), SpareDriver(submission_id="spare_2")):
        put(store, other)
        Wait(store, "spare_1").tell_ready()
        assert read(store) == other


def test_what_is_given_while_it_says_so_is_not_lost(store: ObjectStore) -> None:
    put(store, SpareDriver(submission_id="spare_1"))
    given = SpareDriver(submission_id="spare_1", given=GIVEN)

    class GivesMeanwhile:
        def get_with_etag(self, key: str) -> StoredObject:
            current = store.get_with_etag(key)
            put(store, given)
            return current

        def put(self, *arguments: object, **options: object) -> object:
            return store.put(*arguments, **options)  # type: ignore[arg-type]

    Wait(GivesMeanwhile(), "spare_1").tell_ready()  # type: ignore[arg-type]
    assert read(store) == given


@pytest.mark.parametrize("error", [ObjectStoreUnavailable("no answer"), NotFound("nothing there")])
def test_a_store_that_does_not_answer_is_asked_again(
    store: ObjectStore, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    failing = True

    class Away:
        def get_with_etag(self, key: str) -> StoredObject:
            if failing:
                raise error
            return store.get_with_etag(key)

    def comes_back() -> None:
        nonlocal failing
        failing = False

    put(store, SpareDriver(submission_id="spare_1", given=GIVEN))
    wait = Wait(Away(), "spare_1")  # type: ignore[arg-type]
    assert wait.goes_on
    assert wait.until_given(then(lambda: None, lambda: None, comes_back)) == GIVEN
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"cannot look for an attempt: {error}"
    ]


def test_processes_gather(tmp_path: Path) -> None:
    gathering, came = Gathering(tmp_path, 3, within_s=20), []
    threads = [threading.Thread(target=lambda: came.append(gathering.gather())) for _ in range(3)]
    for thread in threads[:2]:
        thread.start()
    threads[0].join(0.1)
    assert not came
    threads[2].start()
    for thread in threads:
        thread.join()
    assert came == [True, True, True]


def test_those_that_came_go_on_without_the_others(tmp_path: Path) -> None:
    assert not Gathering(tmp_path, 2, within_s=0.05).gather()
