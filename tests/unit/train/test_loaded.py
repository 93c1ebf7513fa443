"""A job that a standby has loaded is the one that it then runs."""

import threading
from typing import Any, cast

import pytest

from ray_cluster.train import loaded
from ray_cluster.train.fit_job import FitJob
from ray_cluster.train.loaded import LoadedLoop
from ray_cluster.train.shards import Quantity, ShardMap, ShardResult, ShardTask, compute_here
from services.contracts.errors import ObjectStoreUnavailable

JOB = cast(FitJob, None)
"""What is loaded does not depend on it here."""
TASK = ShardTask(Quantity.QUALITY, "rows", params_P=None)  # type: ignore[arg-type]


class Loop:
    """What was done with it, in order."""

    def __init__(self, map_shards: ShardMap) -> None:
        self.map_shards = map_shards
        self.done: list[str] = []

    def warm_up(self) -> None:
        self.done.append("warm up")

    def compute(self, task: ShardTask, shard: int) -> ShardResult:
        self.done.append(f"compute {shard}")
        return (shard,)  # type: ignore[return-value]

    def close(self) -> None:
        self.done.append("close")


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Those that were loaded; an exception in front fails the next load."""
    made: list[Any] = []

    def load(job: object, map_shards: ShardMap) -> Loop:
        if made and isinstance(made[0], Exception):
            raise made.pop(0)
        made.append(Loop(map_shards))
        return made[-1]

    monkeypatch.setattr(loaded, "_load", load)
    return made


def test_what_was_loaded_is_run_and_then_forgotten(loops: list[Any]) -> None:
    loop = LoadedLoop(JOB)
    loop.load()
    loop.load()
    assert loop.compute(TASK, [2, 3]) == [(2,), (3,)]
    with loop.running(compute_here) as running:
        assert running is loops[0]
    assert [each.done for each in loops] == [["warm up", "compute 2", "compute 3", "close"]]
    with loop.running(compute_here) as again:
        assert again is loops[1]


def test_shards_go_where_the_run_says(loops: list[Any]) -> None:
    loop = LoadedLoop(JOB)
    loop.load()
    assert loops[0].map_shards(TASK, 2, loops[0].compute) == [(0,), (1,)]
    with loop.running(lambda task, count, compute: [("elsewhere",)] * count):  # type: ignore[list-item]
        assert loops[0].map_shards(TASK, 2, loops[0].compute) == [("elsewhere",)] * 2


def test_a_load_that_failed_is_tried_again(loops: list[Any]) -> None:
    loops.append(ObjectStoreUnavailable("away"))
    loop = LoadedLoop(JOB)
    with pytest.raises(ObjectStoreUnavailable):
        loop.load()
    with loop.running(compute_here) as running:
        assert running is loops[0]


def test_whoever_runs_it_waits_for_the_load_that_is_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, go_on, made = threading.Event(), threading.Event(), []

    def load(job: object, map_shards: ShardMap) -> Loop:
        entered.set()
        assert go_on.wait(10)
        made.append(Loop(map_shards))
        return made[-1]

    monkeypatch.setattr(loaded, "_load", load)
    loop = LoadedLoop(JOB)
    loading = threading.Thread(target=loop.load)
    loading.start()
    assert entered.wait(10)
    threading.Timer(0.05, go_on.set).start()
    with loop.running(compute_here) as running:
        assert running is made[0]
    loading.join()
    assert len(made) == 1
